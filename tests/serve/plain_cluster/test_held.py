"""What clients of a model see that sleeps, and does not wake in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.bare_cluster import is_alone

HOLD_S = 6
LIMIT_S = 240
WAYS = ["", "/models/sleeper"]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sleeping") / "held"


@pytest.fixture(scope="module")
def client(bare: LocalCluster, held: Path) -> Iterator[httpx.Client]:
    """Yields one whose model has no replica and gets none while the file is there."""
    sleeper: dict[str, Any] = {
        "model": {"family": "sleeping", "import": "tests.serve.user_sleeping_models"},
        "hardware": {"gpus": 0, "cpus": 0.1},
        "serving": {
            "engine": {"held": str(held)},
            "autoscaling": {"min_replicas": 0, "max_replicas": 1},
        },
    }
    held.touch()
    applications = [
        model_application("sleeper", sleeper),
        router_application(bare.port, hold_timeout_s=HOLD_S),
    ]
    bare.deploy(applications)
    deadline = time.monotonic() + LIMIT_S
    while not is_alone(bare, applications):
        assert time.monotonic() < deadline, bare.statuses()
        time.sleep(0.2)
    with httpx.Client(base_url=bare.url, timeout=LIMIT_S) as client:
        yield client
    held.unlink(missing_ok=True)


def ask(client: httpx.Client, way: str, **headers: str) -> httpx.Response:
    body = {"model": "sleeper", "inputs": {"text": "a"}}
    return client.post(f"{way}/v1/infer", json=body, headers=headers)


@pytest.mark.parametrize("way", WAYS)
def test_a_client_waits_for_its_turn_as_long_as_it_says(client: httpx.Client, way: str) -> None:
    answer = ask(client, way, **{"x-request-timeout-ms": "1500"})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1"), answer.text
    assert "has not come, and it may take 1.5 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_does_not_come_is_given_up(client: httpx.Client, way: str) -> None:
    began_s = time.monotonic()
    answer = ask(client, way)
    assert time.monotonic() - began_s >= HOLD_S - 1
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
    message = (
        f"The model 'sleeper' had no running replica for {HOLD_S} s: "
        "`truthgpt why sleeper` says why"
    )
    assert answer.json()["error"]["message"] == message


def test_it_answers_once_it_has_come(client: httpx.Client, held: Path) -> None:
    held.unlink()
    deadline = time.monotonic() + LIMIT_S
    while (answer := ask(client, "/models/sleeper")).status_code == 503:
        assert time.monotonic() < deadline
    assert (answer.status_code, answer.json()["outputs"]) == (200, {"text": "a"})
