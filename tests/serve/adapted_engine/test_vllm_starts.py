"""Starts of vLLM's engine in a program of one's own: used, left, failed, and killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.serve.adapted_engine.conftest import PROMPTS, TOKENS
from tests.serve.listeners import find_listeners
from tests.serve.vllm_process import (
    PROGRAMS,
    START_TIMEOUT_S,
    Server,
    alive,
    descendants,
    environment,
    make_config,
    run_program,
    wait_for,
)
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import create_run_id, read_process, wait_for_end

ORPHANS_S = 10
"""Within this a program's engine has ended after it."""
FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "no weights": ({"model": {"name_or_path": "nobody/nothing"}}, "nobody/nothing"),
    "engine process fails": (
        {"engine": {"kv_cache_memory_bytes": "2M", "max_model_len": 4096}},
        "did not start",
    ),
}
"""Configurations with which no engine starts, and what the error says of it."""

pytestmark = pytest.mark.timeout(900)


def test_nothing_of_an_engine_listens_beyond_loopback(server: Server) -> None:
    listeners = find_listeners(server.run_id)
    assert any(each.kind == "tcp" and "EngineCore" in each.title for each in listeners), listeners
    assert [each for each in listeners if not each.is_local] == []


def test_no_orphans_after_a_kill_during_the_start(models: Path) -> None:
    command = [sys.executable, str(PROGRAMS / "vllm_server.py"), str(free_port()), "tiny"]
    with subprocess.Popen(
        [*command, json.dumps(make_config(models))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as process:
        try:
            wait_for(lambda: spawned(process.pid), START_TIMEOUT_S)
            # Now the engine's process imports what it needs, before it loads any plug-in.
            time.sleep(0.5)
            tree = descendants(process.pid)
        finally:
            process.kill()
    assert not alive(tree, within_s=15)


def spawned(pid: int) -> bool:
    found = (read_process(child.pid) for child in descendants(pid))  # one may end meanwhile
    return any(child is not None and "--multiprocessing-fork" in child.command for child in found)


@pytest.fixture(scope="module")
def offline(models: Path) -> dict[str, Any]:
    """What a program found that used one engine after the other, and left the last one."""
    inputs = {"text": PROMPTS[1], "max_new_tokens": TOKENS, "temperature": 0}
    run_id = create_run_id()
    good, *failing = (
        make_config(models, run_name="tiny", **changes)
        for changes in ({}, *(changes for changes, _ in FAILING.values()))
    )
    arguments = map(json.dumps, (good, inputs, failing))
    done = run_program("vllm_offline.py", *arguments, run_id=run_id)
    assert done.returncode == 0, done.stderr[-4000:]
    left = wait_for_end(run_id, ORPHANS_S)
    # An engine that stops with the program logs behind it.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"sync"')]
    return {**json.loads(line), "left behind": left}


@pytest.mark.parametrize("how", ["sync", "async", "left"])
def test_offline_use_starts_and_stops_its_own_engine(
    offline: dict[str, Any], reference: dict[str, list[str]], how: str
) -> None:
    result, expected = offline[how], reference["alone"][1]
    assert result["answer"] == {"text": expected, "finish_reason": "length"}
    assert "".join(delta["text"] for delta in result["deltas"]) == expected
    assert len(result["deltas"]) > 1  # a busy machine joins some
    if how == "left":
        assert offline["left behind"] == []
    else:
        assert result["unfinished"] == [1, 0]
        assert result["error"] == "RequestError"
        assert result["processes"] == []


@pytest.mark.parametrize("number", range(len(FAILING)), ids=[*FAILING])
def test_failed_start_says_why_and_leaves_nothing(offline: dict[str, Any], number: int) -> None:
    found = offline["failed"][number]
    assert found["error"].startswith("UnavailableError: model 'tiny': vLLM did not start")
    assert [*FAILING.values()][number][1] in found["error"]
    assert found["processes"] == []
