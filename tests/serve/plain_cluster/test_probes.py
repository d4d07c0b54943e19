"""Health and metrics of models that are full, of several replicas, through every way to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.local_cluster import LocalCluster, model_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.bare_cluster import install
from truthgpt_serve.replica.metrics import UP

START_TIMEOUT_S = 300
SCRAPE_S = 5.0
"""A scrape of a full model answers within this, three of five, however busy the machine; usually in
some milliseconds. What waited for its turn would be refused, or wait for up to 40 s."""
LONG = 100
SMALL: dict[str, Any] = {"cpus": 0.1, "gpus": 0}
FULL = {"max_ongoing_requests": 1, "max_queued_requests": 1}


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> LocalCluster:
    folder = tmp_path_factory.mktemp("probes")
    slow = {"engine": {"token_interval_s": 0.1}}
    engine = {"enforce_eager": True, "max_model_len": 512, "kv_cache_memory_bytes": "64M"}
    models: dict[str, dict[str, Any]] = {
        "echo": {"model": {"family": "echo"}, "serving": {**FULL, "num_replicas": 2, **slow}},
        "slow": {"model": {"family": "echo"}, "serving": slow},
        "tiny": {
            "model": {"name_or_path": str(make_tiny_llama(folder / "llama"))},
            "model_optim": {"dtype": "float32"},
            "serving": {**FULL, "engine": engine},
        },
        "far": {
            "model": {"family": "remote", "name_or_path": f"{bare.url}/v1"},
            "serving": {**FULL, "engine": {"model": "slow"}},
        },
    }
    applications = [
        model_application(name, {"hardware": SMALL, **model}) for name, model in models.items()
    ]
    install(bare, applications, timeout_s=START_TIMEOUT_S)
    return bare


@asynccontextmanager
async def filled(cluster: LocalCluster, model: str) -> AsyncIterator[httpx.AsyncClient]:
    """Holds a model full: every replica works, every queue is full, and others are refused."""
    url = f"{cluster.url}/models/{model}/v1/completions"
    body = {"model": model, "prompt": "word " * LONG, "max_tokens": 400, "ignore_eos": True}
    if model != "tiny":
        body.pop("ignore_eos")
    async with httpx.AsyncClient(timeout=120) as client:
        statuses: list[int] = []

        async def keep() -> None:
            while True:
                statuses.append((await client.post(url, json=body)).status_code)
                if statuses[-1] == 429:
                    await asyncio.sleep(0.1)

        working = [asyncio.create_task(keep()) for _ in range(8)]
        try:
            async with asyncio.timeout(60):
                while 429 not in statuses:
                    await asyncio.sleep(0.05)
            yield client
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)


async def timed(client: httpx.AsyncClient, url: str) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = await client.get(url)
    return answer, time.monotonic() - started


@pytest.mark.parametrize("model", ["echo", "tiny", "far"])
async def test_a_full_model_answers_its_probes(cluster: LocalCluster, model: str) -> None:
    async with filled(cluster, model) as client:
        for path in ("health", "metrics"):
            found = [await timed(client, f"{cluster.url}/models/{model}/{path}") for _ in range(5)]
            statuses = {answer.status_code for answer, _ in found}
            assert statuses == {200}, found[0][0].text
            assert sorted(seconds for _, seconds in found)[2] < SCRAPE_S, found


def test_a_scrape_has_every_replica(cluster: LocalCluster) -> None:
    details = cluster.details()["applications"]
    for model, number in (("echo", 2), ("tiny", 1)):
        (deployment,) = details[model]["deployments"].values()
        replicas = {replica["replica_id"] for replica in deployment["replicas"]}
        assert len(replicas) == number
        page = httpx.get(f"{cluster.url}/models/{model}/metrics", timeout=20)
        assert page.status_code == 200, page.text
        families = {each.name: each.samples for each in text_string_to_metric_families(page.text)}
        assert {sample.labels["replica"] for sample in families[UP]} == replicas
        assert {sample.value for sample in families[UP]} == {1}
        if model == "tiny":
            assert "vllm:num_requests_running" in families


async def test_the_routers_own_probes_answer_while_models_are_full(cluster: LocalCluster) -> None:
    async with filled(cluster, "echo") as client:
        for path in ("health", "ready", "metrics"):
            answer, _ = await timed(client, f"{cluster.url}/{path}")
            assert answer.status_code == 200, answer.text
