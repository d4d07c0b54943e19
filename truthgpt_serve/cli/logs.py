"""`truthgpt logs`: what the processes of a model print on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from truthgpt_serve.cli._service.completion import complete_models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from truthgpt_serve.cli._service.address import Address
    from truthgpt_serve.cli._service.session import Follower, Session

PERIOD_S = 0.3
LOOK_PERIOD_S = 2.0
"""How often new processes of the model are looked for."""


@click.command()
@click.argument("model", shell_complete=complete_models)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is added, until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(0, 100_000), default=100, show_default=True,
    help="How many of the last lines of each file.",
)  # fmt: skip
@click.option("--all", "all_processes", is_flag=True, help="Also of processes that have ended.")
def logs(model: str, follow: bool, lines: int, all_processes: bool) -> None:
    """Prints what the processes of a model print.

    That is what its own code, libraries and its engine print.

    Reads Ray's files on this machine, of the processes that live, else of the one that wrote last.
    A service on another machine has its files there.
    """
    from truthgpt_serve.cli._service.address import URL_VARIABLE, find_address
    from truthgpt_serve.cli._service.session import find_session

    address = find_address()
    session = find_session(address, earlier=address.source != URL_VARIABLE)
    if session is None:
        where = "on another machine" if not address.is_loopback else "one whose files are not known"
        raise click.ClickException(
            f"the service is {where}: run this where it was started, or see `truthgpt why {model}`"
        )
    printer = _Printer()
    try:
        paths = _chosen(session, model, all_processes) or session.builds(model)[-1:]
        if not paths and (own := _application_of(model, address, may_come=follow)):
            model = own
            paths = _chosen(session, model, all_processes) or session.builds(model)[-1:]
        if not paths and not follow:
            raise click.ClickException(
                f"no process of {model!r} has printed anything; looked at {session.folder}/logs; "
                f"`truthgpt why {model}` says what it waits for"
            )
        followers = {path: printer.show_tail(path, lines) for path in paths}
        if follow:
            _follow(session, model, followers, printer)
    except PermissionError as error:
        raise click.ClickException(f"the files are another user's: {error}") from error
    except KeyboardInterrupt:
        return


def _application_of(model: str, address: Address, *, may_come: bool) -> str | None:
    """Returns the model that an adapter or another name belongs to, as far as the service says.

    Args:
        model: Its name.
        address: Where the service is.
        may_come: Whether the name may be that of a model which is deployed later.

    Raises:
        click.ClickException: The service has nothing of that name.
    """
    from truthgpt_serve.cli._service.client import ServiceClient, model_path
    from truthgpt_serve.cli._service.failures import ServiceFault, text_of, unknown_model

    names: Sequence[str] | None = None
    try:
        with ServiceClient(address) as client:
            try:
                found = client.get(model_path(model))
            except ServiceFault as fault:
                if fault.status != 404:
                    raise
                found, names = None, client.names()
    except (ServiceFault, click.UsageError):  # its files may be there without it
        return None
    if names is not None and not may_come:
        raise click.ClickException(unknown_model(model, names))
    return (
        text_of(found.get("parent") or found.get("alias_of")) if isinstance(found, dict) else None
    )


def _chosen(session: Session, model: str, all_processes: bool) -> list[Path]:
    """Returns the files to read: Ray Serve's logs of the replicas, and what processes printed."""
    replicas, logs = session.replicas(model), session.serve_logs(model)
    living = [replica for replica in replicas if replica.lives]
    if not all_processes:
        replicas, logs = living or replicas[-1:], logs[-max(1, len(living)) :]
    return [*logs, *(path for replica in replicas for path in replica.files)]


def _follow(
    session: Session, model: str, followers: dict[Path, Follower], printer: _Printer
) -> None:
    from truthgpt_serve.cli._service.session import Follower

    looked_s = time.monotonic()
    while True:
        time.sleep(PERIOD_S)
        if time.monotonic() - looked_s >= LOOK_PERIOD_S:
            looked_s = time.monotonic()
            for path in _chosen(session, model, all_processes=False):
                followers.setdefault(path, Follower(path))
        for path, follower in followers.items():
            for line in follower.read():
                printer.show(path, line)


class _Printer:
    """Prints lines, and the file before them wherever it is another one."""

    def __init__(self) -> None:
        self._last: Path | None = None

    def show_tail(self, path: Path, num_lines: int) -> Follower:
        """Prints the end of a file; returns what reads on from there."""
        from truthgpt_serve.cli._service.session import Follower, tail

        found, position = tail(path, num_lines)
        for line in found:
            self.show(path, line)
        return Follower(path, position)

    def show(self, path: Path, line: str) -> None:
        """Prints one line."""
        if path != self._last:
            click.secho(f"==> {path} <==", dim=True, err=True)
            self._last = path
        click.echo(line)
