"""Families are tried in processes of their own: what crashes, hangs or lies ends only itself.

The families of these tests come by an entry point, as another package's would.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.sample_models import wait_until
from truthgpt_serve.contract import MAX_DETAIL, Probe
from truthgpt_serve.doctor.families import examine
from truthgpt_serve.errors import ConfigError, Fault

LIMIT_S = 60
MODULE = """
import os, signal, subprocess, sys, time
from truthgpt_serve.contract import FamilySpec, Probe


def examine(cfg):
    how = (cfg or {}).get("how") or os.environ.get("TG_HOW", "well")
    print("a library prints what it likes")
    yield Probe("first", True, f"{how} in {os.getpid()}")
    if how == "abort":
        os.abort()
    if how == "exit":
        print("the reason", file=sys.stderr)
        os._exit(3)
    if how == "leave":
        os._exit(0)
    if how == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        yield Probe("child", True, str(child.pid))
        time.sleep(600)
    if how == "raise":
        raise RuntimeError("not guarded\\nsecond line")
    yield Probe("last", False, "no", "do this")


def spec(name, path):
    return FamilySpec(name=name, class_path="nosuch:Class", doctor_path=path)


FAMILY = spec("tg-doctor", "tg_doctor_family:examine")
BROKEN = spec("tg-broken", "tg_no_such_engine:examine")
"""
POINTS = """
[truthgpt_serve.families]
tg-doctor = tg_doctor_family:FAMILY
tg-broken = tg_doctor_family:BROKEN
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tg_doctor_family.py").write_text(MODULE)
    info = tmp_path / "tg_doctor-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tg-doctor\nVersion: 1\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def names(probes: list[Probe]) -> list[str]:
    return [probe.name for probe in probes]


def test_each_target_has_its_own_probes() -> None:
    found = examine("tg-doctor", [None, {"how": "other"}])
    assert [names(probes) for probes in found] == [["first", "last"]] * 2
    assert found[1][0].detail.startswith("other in ")
    assert found[0][1] == Probe("last", False, "no", "do this")
    pids = {probes[0].detail.rpartition(" ")[2] for probes in found}
    assert len(pids) == 1
    assert str(os.getpid()) not in pids


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("abort", "its process died by signal SIGABRT"),
        ("exit", "its process died by exit code 3 (the reason)"),
        ("leave", "its process ended early"),
    ],
)
def test_a_crash_is_one_targets_and_says_after_which_probe(how: str, message: str) -> None:
    found = examine("tg-doctor", [{"how": "a"}, {"how": how}, {"how": "b"}])
    assert [names(probes) for probes in found] == [
        ["first", "last"],
        ["first", "examination"],
        ["first", "last"],
    ]
    died = found[1][1]
    assert not died.works
    assert message in died.detail
    assert "after the probe 'first'" in died.detail
    assert found[0][0].detail != found[2][0].detail  # another process


@pytest.mark.long("waits for limits of time")
def test_what_hangs_is_ended_with_all_that_it_started() -> None:
    [probes] = examine("tg-doctor", [{"how": "hang"}], time_limit_s=8)
    assert names(probes) == ["first", "child", "examination"]
    assert "did not end within 8 s" in probes[2].detail
    wait_until(lambda: not _runs(int(probes[1].detail)))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_what_is_not_guarded_is_a_probe_that_failed() -> None:
    found = examine("tg-doctor", [{"how": "raise"}, None])
    assert names(found[0]) == ["first", "examination"]
    assert found[0][1].detail == "it failed itself: RuntimeError: not guarded"
    assert names(found[1]) == ["first", "last"]


def test_an_engine_that_does_not_import_is_named_with_a_fix() -> None:
    for probes in examine("tg-broken", [None, {}]):
        [probe] = probes
        assert not probe.works
        assert "ModuleNotFoundError: No module named 'tg_no_such_engine'" in probe.detail
        assert "install the extra" in probe.fix


# -- one probe


def fail(error: Exception) -> Any:
    raise error


def test_an_attempt_keeps_one_line_of_what_happened() -> None:
    assert Probe.attempt("a", lambda: "gave\nmore") == Probe("a", True, "gave")
    assert Probe.attempt("a", lambda: None) == Probe("a", True, "")
    failed = Probe.attempt("a", lambda: fail(KeyError("x" * 1000)), "fix it")
    assert (failed.works, len(failed.detail), failed.fix) == (False, MAX_DETAIL, "fix it")
    fault = ConfigError([Fault("model_optim.compile", "has no compiler", "install one")])
    assert Probe.attempt("a", lambda: fail(fault), "other") == Probe(
        "a", False, "has no compiler", "install one"
    )


@pytest.mark.long("starts doctors and ends them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "model.yaml"
    config.write_text("model: {family: tg-doctor}\nserving: {max_ongoing_requests: 1}\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environ = {**os.environ, "TG_HOW": "hang", "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "truthgpt_serve.cli", "doctor", str(config)]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until(lambda: bool(pids_in(temporary)), limit_s=LIMIT_S)
            pids = pids_in(temporary)
            process.send_signal(number)
            process.wait(LIMIT_S)
            assert process.stderr is not None
            shown = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode != 0, shown
    assert not [*temporary.glob("truthgpt-doctor-*")], shown
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), limit_s=LIMIT_S)


def pids_in(folder: Path) -> list[int]:
    """Returns the child that a probe has started, and the process of the probe."""
    found = []
    for file in folder.glob("truthgpt-doctor-*/probes.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found += [int(row["detail"].rpartition(" ")[2]) for row in rows if row.get("name")]
    return found if len(found) > 1 else []
