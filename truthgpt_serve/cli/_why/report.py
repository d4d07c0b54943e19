"""Finds out why a model does not run: from the service, else from the files of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_serve.cli._service.address import Address
from truthgpt_serve.cli._service.client import ServiceClient, model_path
from truthgpt_serve.cli._service.failures import ServiceFault, one_line, text_of, unknown_model
from truthgpt_serve.cli._service.session import Session, find_session, service_log, tail
from truthgpt_serve.cli._service.traces import find_traceback, is_crash
from truthgpt_serve.cluster.start_errors import ENDED

LOOKED_AT_LINES = 5000
LAST_LINES = 8
MAX_PROCESSES = 3
"""How many of a model's last processes are looked at."""
MAX_DEATHS = 3
LAST_LINES_OF_SERVICE = 200
STOPPED = "Got KeyboardInterrupt, shutting down"
"""What `serve run` says when it is stopped in order."""
RUNNING, DELETING = "RUNNING", "DELETING"
_STARTING = ("DEPLOYING", "UNHEALTHY")
"""States in which a process that lives may be one that starts."""


@dataclass(slots=True)
class Report:
    """What was found out about a model.

    Attributes:
        model: Its name.
        application: The model that serves it, where that is an adapter or another name of one.
        state: Ray Serve's status of its application, or None where it is not known.
        num_replicas: Replicas that run, or None.
        cause: Why it does not run, or why its last process died, or None.
        waits_for: What replicas without a node wait for, or None.
        seconds: Since it was deployed, or None.
        deaths: Why its last processes died, the latest last.
        traceback: Of its code, or the stack of a crash.
        last_lines: What its process printed last, while it is starting.
        faults: Of the files that describe it.
        advice: What the user can do.
        looked_at: Addresses and files.
        starting: Whether the whole service is starting.
    """

    model: str
    application: str | None = None
    state: str | None = None
    num_replicas: int | None = None
    cause: str | None = None
    waits_for: str | None = None
    seconds: float | None = None
    deaths: list[str] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)
    starting: bool = False

    @property
    def runs(self) -> bool:
        """Whether it answers requests: also one that has scaled to zero does."""
        return self.state == RUNNING

    def to_json(self) -> dict[str, Any]:
        """Returns it for programs."""
        return {"runs": self.runs, **asdict(self)}


def find_out(model: str, address: Address) -> Report:
    """Returns all that can be found out.

    Args:
        model: The model's name.
        address: Where the service is.

    Raises:
        ServiceFault: There is no such model, or the service refuses to say.
    """
    report = Report(model)
    try:
        with ServiceClient(address) as client:
            _ask(report, client)
    except ServiceFault as fault:
        if fault.status is not None and fault.status != 503:
            raise
        starting = "the service is starting: " if fault.status == 503 else ""
        report.cause = f"{starting}{fault.message}"
        report.starting = bool(starting)
    session = find_session(address, earlier=report.state is None)
    if session is not None and not (report.runs and report.num_replicas):
        _look(report, session)
    if report.state is None and not report.starting and address.is_loopback:
        _look_at_service(report, session)
    _advise(report)
    return report


def _ask(report: Report, client: ServiceClient) -> None:
    path = model_path(report.model)
    report.looked_at.append(f"{client.address.shown}{path}")
    try:
        found = client.get(path)
    except ServiceFault as fault:
        if fault.status == 404:
            message = unknown_model(report.model, client.names())
            raise ServiceFault(message, status=404, code=fault.code) from fault
        raise
    if not isinstance(found, dict):
        message = f"{path} is no object: is that the address of the service?"
        raise ServiceFault(message, status=200)
    if "status" not in found:
        if not _lists_states(client):
            message = f"the service at {client.address.shown} does not tell models' states"
            raise ServiceFault(message, status=200)
        report.state, report.cause = DELETING, "it is being taken out of the service"
        return
    report.state = text_of(found.get("status"))
    report.cause = text_of(found.get("last_error"))
    report.waits_for = text_of(found.get("waits_for"))
    if isinstance(created := found.get("created"), int):
        report.seconds = max(0.0, time.time() - created)
    ready = client.get("/ready", accept=(503,))
    report.application = text_of(found.get("parent") or found.get("alias_of"))
    own = (ready.get("models") or {}).get(report.application or report.model) or {}
    report.num_replicas = own.get("num_running_replicas")


def _lists_states(client: ServiceClient) -> bool:
    """Whether the service tells the states of models, one of which may be about to end."""
    try:
        ready = client.get("/ready", accept=(503,))
    except ServiceFault:
        return False
    return isinstance(ready, dict) and isinstance(ready.get("models"), dict)


def _look(report: Report, session: Session) -> None:
    """Adds what the files of Ray on this machine say."""
    report.looked_at.append(f"{session.folder}/logs")
    name = report.application or report.model
    try:
        replicas = session.replicas(name)
        report.deaths = list(dict.fromkeys(map(one_line, session.deaths(name))))[-MAX_DEATHS:]
        # The newest first; the last process may have been ended by what an earlier one did.
        files = [*reversed(session.serve_logs(name)[-MAX_PROCESSES:])]
        files += [path for replica in reversed(replicas[-MAX_PROCESSES:]) for path in replica.files]
        files += session.builds(name)
        outputs = [(path, tail(path, LOOKED_AT_LINES)[0]) for path in files]
    except OSError as error:
        report.advice.append(f"the files cannot be read: {error}")
        return
    if report.deaths and report.cause == ENDED:
        report.cause = f"the model's process ended while it started: {report.deaths[-1]}"
    found = [(path, trace) for path, lines in outputs if (trace := find_traceback(lines))]
    if report.deaths:  # a start after two deaths raises only that
        found.sort(key=lambda each: not is_crash(each[1]))
    if found:
        path, report.traceback = found[0]
        report.looked_at.append(str(path))
    if replicas and replicas[-1].lives and (report.starting or report.state in _STARTING):
        report.last_lines = _last_lines([*replicas[-1].files, *session.serve_logs(name)[-1:]])


def _last_lines(files: Sequence[Path]) -> list[str]:
    """Returns the end of the newest file that has lines; Serve's log has what a class prints."""
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        if lines := tail(path, LAST_LINES)[0]:
            return lines
    return []


def _look_at_service(report: Report, session: Session | None) -> None:
    """Adds why the whole service does not run: its log, and the faults of the Serve file."""
    from truthgpt_serve.cluster.service.advice import find_advice, find_cause

    log = service_log(session.run_folder if session is not None else None)
    if log is not None:
        report.looked_at.append(str(log))
        lines = tail(log, LOOKED_AT_LINES)[0]
        if any(STOPPED in line for line in lines[-LAST_LINES_OF_SERVICE:]):
            report.cause = f"{report.cause}; the last run was stopped"
        else:
            report.last_lines = find_cause(lines)
            if advice := find_advice(report.last_lines):
                report.advice.append(advice)
    _check_files(report)


def _check_files(report: Report) -> None:
    from truthgpt_serve.config.paths import config_dir
    from truthgpt_serve.validate import validate_file

    file = config_dir() / "serve.yaml"
    if not file.is_file():
        return
    report.looked_at.append(str(file))
    report.faults = [str(fault) for fault in validate_file(str(file)).faults]


def _advise(report: Report) -> None:
    from truthgpt_serve.cluster.service.advice import find_advice

    name = report.application or report.model
    if not report.runs and (advice := find_advice([*report.traceback, report.cause or ""])):
        report.advice.append(advice)
    if report.faults:
        report.advice.append("correct the faults; `truthgpt validate` lists them again")
    elif report.state == "DEPLOY_FAILED":
        report.advice.append(
            "correct the cause and deploy again: `truthgpt deploy configs/serve.yaml`, or start "
            "`make serve` anew"
        )
    elif report.waits_for:
        report.advice.append(
            "give it less (`hardware`), end another model, or add a machine to the cluster"
        )
    elif report.state == "DEPLOYING":
        report.advice.append(f"it is loading: `truthgpt logs {name} --follow` shows what it does")
