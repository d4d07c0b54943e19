"""A conversation stays on its replica of a real service, on every way to the model."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install
from tests.serve.ways import DIRECT, MODEL, ROUTER, WAYS, Request, Way, send

SERVE = Path(__file__).parents[1]
NUM_REPLICAS = 2
NUMBERS = range(24)
MAX_MOVED = 3
"""Conversations that may move at once to balance the replicas; half of them would by chance."""
LIMIT_S = 180
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster, modules: Path) -> LocalCluster:
    shutil.copy(SERVE / "user_telling.py", modules / "affinity_telling.py")

    def model(affinity: str) -> dict[str, Any]:
        telling = {
            "model": {"family": "telling", "import": "affinity_telling"},
            "hardware": {"cpus": 0.1, "gpus": 0},
            "serving": {
                "num_replicas": NUM_REPLICAS, "affinity": affinity, "max_ongoing_requests": 8
            },
        }  # fmt: skip
        return model_application(affinity, telling)

    install(bare, [model("prefix"), model("none")])
    return bare


def replica_of(cluster: LocalCluster, way: Way, number: int, num_turns: int, model: str) -> int:
    """Sends a turn of a conversation and returns the process that answers it."""
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(num_turns):
        messages.append({"role": "user", "content": f"Question {number}, {turn}"})
        messages.append({"role": "assistant", "content": "Yes."})
    body = {"messages": messages[:-1], "model": model}
    answer = send(cluster.url, way, Request(model, body, path=CHAT))
    assert answer.status == 200, answer
    return int(answer.body["choices"][0]["message"]["content"])


def replicas_of(
    cluster: LocalCluster, way: Way, num_turns: int = 1, model: str = "prefix"
) -> list[int]:
    return [replica_of(cluster, way, number, num_turns, model) for number in NUMBERS]


def wait_for_replicas(cluster: LocalCluster, gone: int | None = None) -> set[int]:
    """Waits until all replicas of the model run and HAProxy gives each of them requests."""
    deadline = time.monotonic() + LIMIT_S
    pids: set[int] = set()
    while len(pids) < NUM_REPLICAS or gone in pids:
        assert time.monotonic() < deadline, pids
        asked = (int(ask_without_a_key(cluster)) for _ in range(4 * NUM_REPLICAS))
        pids = {pid for pid in asked if pid}  # 0: the request was lost with its replica
        time.sleep(0.1)
    return pids


def ask_without_a_key(cluster: LocalCluster) -> str:
    body = {"model": "prefix", "inputs": {"text": "a"}}
    try:
        answer = httpx.post(f"{cluster.url}/v1/infer", json=body, timeout=LIMIT_S)
    except httpx.RemoteProtocolError:  # it was on its way to the replica that was killed
        return "0"
    return str(answer.json()["outputs"]["text"]) if answer.status_code == 200 else "0"


def settled(cluster: LocalCluster) -> list[int]:
    """Returns the replicas of all conversations, once they do not change any more.

    They are asked in turn from either end: as long as HAProxy has not been told of the affinity, it
    takes one replica after the other, and the same order would find the same ones again.
    """
    deadline = time.monotonic() + LIMIT_S
    found: list[list[int]] = []
    while len(found) < 4 or any(one != found[-1] for one in found[-4:]):
        assert time.monotonic() < deadline, found[-4:]
        order = NUMBERS[:: -1 if len(found) % 2 else 1]
        replicas = {at: replica_of(cluster, DIRECT, at, 1, "prefix") for at in order}
        found.append([replicas[at] for at in NUMBERS])
    return found[-1]


def test_a_conversation_stays_on_its_replica_on_every_way(cluster: LocalCluster) -> None:
    pids = wait_for_replicas(cluster)
    first = settled(cluster)
    assert {*first} == pids
    turns = [(way, num_turns) for num_turns in (2, 9) for way in WAYS]
    turns += [(DIRECT, 1500), (MODEL, 1500)]  # they are too long for the direct way
    for way, num_turns in turns:
        found = replicas_of(cluster, way, num_turns)
        moved = sum(now != before for now, before in zip(found, first, strict=True))
        assert moved <= MAX_MOVED, (way.name, num_turns)
        first = found


def test_without_affinity_a_conversation_is_spread(cluster: LocalCluster) -> None:
    for way in (DIRECT, ROUTER, MODEL):
        seen = {replica_of(cluster, way, 1, 1, "none") for _ in range(8)}
        assert len(seen) == NUM_REPLICAS, way.name


def test_a_killed_replica_moves_only_its_share(cluster: LocalCluster) -> None:
    wait_for_replicas(cluster)
    before = settled(cluster)
    killed = before[0]
    stays = [at for at in NUMBERS if before[at] != killed]
    os.kill(killed, signal.SIGKILL)
    (new,) = wait_for_replicas(cluster, gone=killed) - {*before}
    after = settled(cluster)
    for at in stays:
        assert after[at] in (before[at], new)
    assert {*after} == {*before, new} - {killed}
