"""The metrics of batches, over HTTP from a real server, in the form that Prometheus reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.sample_models import Base, Upper, spec_of, wait_until
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app

CFG = {"task": "custom", "serving": {"max_ongoing_requests": 16, "batching": {"max_batch_size": 8}}}
SAMPLE = re.compile(r'([a-z_]+)(?:\{([a-z]+)="([^"]*)"\})? (\S+)')


class Held(Base):
    """Holds its first batch until `release`, so that the next gathers; `bad` makes a call raise."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def infer(self, inputs: dict[str, Any]) -> Any:
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        self.sizes.append(len(batch))
        assert self.release.wait(20)
        if any(inputs["value"] == "bad" for inputs in batch):
            raise ValueError("bad input")
        return [inputs["value"] for inputs in batch]


class Counting(Upper):
    def metrics(self) -> str:
        return "# TYPE own_total counter\nown_total 3"


class CountingBatches(Held):
    def metrics(self) -> str:
        return "own_total 3\n"


@pytest.fixture
def url() -> Iterator[str]:
    with serve_asgi(create_app(spec_of(Held), CFG, name="m"), lifespan="on") as url:
        yield url


def read(url: str) -> dict[tuple[str, str], float]:
    """Returns the value of each sample by name and label; every line must be one or a comment."""
    answer = httpx.get(f"{url}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for line in answer.text.splitlines():
        if line.startswith("#"):
            assert line.split()[1] in ("HELP", "TYPE")
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        name, _, label, value = match.groups()
        assert (name, label) not in found
        found[name, label or ""] = float(value)
    return found


def ask(url: str, value: str) -> int:
    body = {"model": "m", "inputs": {"value": value}}
    return httpx.post(f"{url}/v1/infer", json=body, timeout=30).status_code


def test_batches_are_counted_by_size_wait_and_end(url: str) -> None:
    model = Held.last
    assert read(url)["truthgpt_batch_size_count", ""] == 0
    with ThreadPoolExecutor(6) as clients:
        first = clients.submit(ask, url, "first")
        wait_until(lambda: model.sizes == [1])
        rest = [clients.submit(ask, url, value) for value in ("a", "b", "bad", "c", "d")]
        wait_until(lambda: read(url)["truthgpt_batch_requests", "queued"] == 5)
        assert read(url)["truthgpt_batch_requests", "ongoing"] == 1
        model.release.set()
        assert first.result() == 200
        assert sorted(each.result() for each in rest) == [200, 200, 200, 200, 500]
    wait_until(lambda: read(url)["truthgpt_batch_run_seconds_count", ""] == 2)
    found = read(url)
    assert found["truthgpt_batch_size_bucket", "1"] == 1
    assert found["truthgpt_batch_size_bucket", "4"] == 1
    assert found["truthgpt_batch_size_bucket", "8"] == 2
    assert found["truthgpt_batch_size_bucket", "+Inf"] == 2
    assert found["truthgpt_batch_size_sum", ""] == 6
    assert found["truthgpt_batch_wait_seconds_count", ""] == 6
    assert found["truthgpt_batch_wait_seconds_bucket", "+Inf"] == 6
    assert found["truthgpt_batch_requests_total", "answered"] == 5
    assert found["truthgpt_batch_requests_total", "failed"] == 1
    assert found["truthgpt_batch_isolated_requests_total", ""] == 1
    assert found["truthgpt_batch_split_calls_total", ""] >= 2
    assert found["truthgpt_batch_calls_total", ""] == len(model.sizes)
    assert found["truthgpt_batch_requests", "queued"] == 0
    assert found["truthgpt_batch_requests", "ongoing"] == 0


def test_a_request_that_fails_alone_is_not_isolated(url: str) -> None:
    Held.last.release.set()
    assert ask(url, "bad") == 500
    found = read(url)
    assert found["truthgpt_batch_requests_total", "failed"] == 1
    assert found["truthgpt_batch_isolated_requests_total", ""] == 0
    assert found["truthgpt_batch_split_calls_total", ""] == 0


@pytest.mark.parametrize(("cls", "batched"), [(Counting, False), (CountingBatches, True)])
def test_a_classs_own_metrics_stand_beside_them(cls: type, batched: bool) -> None:
    with serve_asgi(create_app(spec_of(cls), CFG, name="m"), lifespan="on") as url:
        found = read(url)
    assert found["own_total", ""] == 3
    assert (("truthgpt_batch_calls_total", "") in found) is batched


def test_a_class_without_any_has_no_page() -> None:
    with serve_asgi(create_app(spec_of(Upper), CFG, name="m"), lifespan="on") as url:
        answer = httpx.get(f"{url}/metrics", timeout=10)
    assert answer.status_code == 400
    assert "has no metrics of its own" in answer.json()["error"]["message"]
