"""`make serve` notices which of Ray's processes died, says it, and brings back what it can."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.chaos.load import Load
from benchmarks.chaos.parts import KINDS
from benchmarks.chaos.service import serve_file
from benchmarks.chaos.strike import Target
from benchmarks.local_cluster import token_headers
from tests.serve.shell import (
    ROOT,
    START_S,
    STOP_S,
    Shell,
    assert_nothing_is_left,
    echo_config,
    open_shell,
)
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.cluster.processes import find_run, read_arguments
from truthgpt_serve.cluster.service.parts import PARTS

READY = "[serve] ready after"
ANSWER_S = 30.0
BODY = {"model": "echo", "prompt": "a", "max_tokens": 2}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    with open_shell(tmp_path, echo_config()) as shell:
        yield shell


def kill(shell: Shell, name: str) -> int:
    (part,) = (part for part in PARTS if part.name == name)
    (pid,) = (
        process.pid
        for process in find_run(shell.run_id)
        if part.is_run_by(read_arguments(process.pid))
    )
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for(shell: Shell, *texts: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + START_S
    while any(text not in shell.log.read_text() for text in texts):
        assert time.monotonic() < deadline, (texts, shell.log.read_text())
        meanwhile()
        time.sleep(0.2)


def test_parts_that_are_replaced_alone(tmp_path: Path) -> None:
    """Under streams and unary requests on all ways, and only what the process held fails."""
    key = add_key(tmp_path / "keys.yaml", {"name": "load"})
    notes = tmp_path / "notes"
    notes.mkdir()
    config, env = serve_file(tmp_path, 0, []), {"PYTHONPATH": str(ROOT)}
    with open_shell(tmp_path, config, env=env) as shell:
        service = shell.start()
        run_id = shell.run_id
        url = f"http://127.0.0.1:{shell.port}"
        with Load(url, "words", num_clients=3, key=key) as load:
            strike_in_turn(shell, Target(run_id, notes, load, calm_s=2.0))
        found = re.search(r"View the dashboard at .*?(http://[\d.:]+)", shell.output.read_text())
        assert found is not None
        deadline = time.monotonic() + START_S
        address, token = f"{found.group(1)}/api/serve/applications/", token_headers(shell.folder)
        with httpx.Client(timeout=ANSWER_S) as client:
            while not answers(client, address, token):
                assert time.monotonic() < deadline
                time.sleep(0.5)
        service.send_signal(signal.SIGINT)
        assert service.wait(STOP_S) == 0
        assert "starting again" not in shell.log.read_text()
        assert_nothing_is_left(shell, run_id)


def strike_in_turn(shell: Shell, target: Target) -> None:
    kinds = {kind.name: kind for kind in KINDS}
    time.sleep(2)  # all clients have their answers under way
    for name, how, said in (
        ("dashboard", "kill", "it is started again"),
        ("controller", "kill", "Ray Serve replaces it"),
        ("fallback-proxy", "kill", "Ray Serve replaces it"),
        ("replica", "stop", ""),
        ("replica", "kill", ""),
        ("router", "kill", ""),
        ("proxy-manager", "kill", "Ray Serve replaces it"),
    ):
        part, pid = kinds[name].part.name, kinds[name].find(target.run_id)[-1].pid
        strike = target.strike(kinds[name], how, stop_s=1.5)
        place = (name, how, strike.to_dict())
        assert strike.is_well, place
        assert strike.failed_elsewhere == 0, place
        assert bool(strike.held) == (name in ("replica", "router", "proxy-manager")), place
        if how == "stop":
            assert strike.failed_held == 0, place
        elif strike.held:
            assert strike.failed_held > 0, place
        if said:
            died = f"[serve] {part} (process {pid}) died: {said}"
            wait_for(shell, died, f"[serve] {part} is back after")


def answers(client: httpx.Client, url: str, headers: dict[str, str]) -> bool:
    try:
        return client.get(url, headers=headers).status_code == 200
    except httpx.HTTPError:
        return False


def test_what_takes_the_service_along_starts_it_again(shell: Shell) -> None:
    service = shell.start()
    run_id = shell.run_id
    url = f"http://127.0.0.1:{shell.port}/v1/completions"
    statuses = set()

    with httpx.Client(timeout=ANSWER_S) as client:

        def ask() -> None:
            """Is answered, told to come back, or refused: it never hangs."""
            try:
                answer = client.post(url, json=BODY)
            except httpx.TimeoutException:
                raise
            except httpx.TransportError:
                statuses.add(0)
                return
            statuses.add(answer.status_code)
            if answer.status_code == 503:
                assert answer.headers["retry-after"], answer.text

        for number, name in enumerate(("Ray's raylet", "Ray's GCS"), start=1):
            pid = kill(shell, name)
            died = f"[serve] {name} (process {pid}) died: the whole service starts again"
            wait_for(shell, died, meanwhile=ask)
            deadline = time.monotonic() + START_S
            while shell.log.read_text().count(READY) <= number:
                assert time.monotonic() < deadline, shell.log.read_text()
                assert service.poll() is None, shell.log.read_text()
                ask()
                time.sleep(0.2)
            assert client.post(url, json=BODY).status_code == 200
    assert 0 in statuses
    assert statuses <= {0, 200, 404, 502, 503}

    kill(shell, "Ray's dashboard agent")
    wait_for(shell, "died: the whole service starts again", "starting again in 15 s; 1 tries left")
    service.send_signal(signal.SIGINT)
    assert service.wait(STOP_S) == 0
    assert shell.log.read_text().count(READY) == 3
    assert_nothing_is_left(shell, run_id)


def test_a_stop_during_a_new_try_ends_it(shell: Shell) -> None:
    service = shell.start()
    run_id = shell.run_id
    kill(shell, "Ray's raylet")
    wait_for(shell, "starting again in 1 s")
    deadline = time.monotonic() + START_S
    while shell.output.read_text().count("Running config file") < 2:
        assert time.monotonic() < deadline, shell.log.read_text()
        time.sleep(0.05)
    stopped: subprocess.CompletedProcess[str] = shell.run("stop")
    assert stopped.returncode == 0, stopped.stdout
    assert service.wait(STOP_S) == 0
    assert_nothing_is_left(shell, run_id)
