"""`make serve` notices which of Ray's processes died, says it, and brings back what it can."""

from __future__ import annotations

import re
import signal
import time
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
    open_shell,
)
from truthgpt_serve.access.key_edit import add_key

ANSWER_S = 30.0
pytestmark = pytest.mark.timeout(900)


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
        assert bool(strike.held) == (name in ("replica", "router")), place
        if how == "stop":
            assert strike.failed_held == 0, place
        elif strike.held:
            assert strike.failed_held > 0, place
        if said:
            died = f"[serve] {part} (process {pid}) died: {said}"
            shell.wait_for(died, f"[serve] {part} is back after")


def answers(client: httpx.Client, url: str, headers: dict[str, str]) -> bool:
    try:
        return client.get(url, headers=headers).status_code == 200
    except httpx.HTTPError:
        return False
