"""The requests that a replica counts, and the memory of its processes, over real HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import send_json
from truthgpt_serve.replica.load import ReplicaLoad, resident_bytes
from truthgpt_serve.replica.metrics import ReplicaMetrics


def numbers(page: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("state", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def no_others() -> dict[str, tuple[str, int]]:
    return {}


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_no_request_passes(kind: str) -> None:
    seen = []

    async def model(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    load = ReplicaLoad()
    await load.arriving(load.working(model))({"type": kind}, None, None)  # type: ignore[arg-type]
    assert (seen, load.service_s, load.num_queued) == ([kind], 0, 0)


def test_requests_are_counted_where_they_wait_and_where_they_run() -> None:
    load = ReplicaLoad()
    entered, go_on = threading.Semaphore(0), threading.Event()

    async def model(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] in ("/metrics", "/health"):
            await send_json(send, {}, status=404)  # it has none of its own
            return
        entered.release()
        await asyncio.to_thread(go_on.wait, 60)
        if scope["path"] == "/broken":
            raise RuntimeError("it broke")
        await send_json(send, {})

    working = load.working(model)
    metrics = ReplicaMetrics(working, "r1", no_others, [load.page])
    aside = ("/metrics", "/health")
    place = asyncio.Semaphore(2)

    async def queue(scope: Any, receive: Any, send: Any) -> None:
        async with place:
            await working(scope, receive, send)

    arriving = load.arriving(queue)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (metrics if scope["path"] in aside else arriving)(scope, receive, send)

    with serve_asgi(app) as url:
        paths = ("/a", "/broken", "/c")
        threads = [threading.Thread(target=httpx.get, args=(f"{url}{path}",)) for path in paths]
        for thread in threads:
            thread.start()
        assert entered.acquire(timeout=30)
        assert entered.acquire(timeout=30)
        while numbers(load.page())["truthgpt_replica_requests", "queued"] < 1:
            pass  # pytest's own time limit ends it
        page = httpx.get(f"{url}/metrics").text
        go_on.set()
        for thread in threads:
            thread.join(30)
        httpx.get(f"{url}/health")
        after = numbers(httpx.get(f"{url}/metrics").text)
    found = numbers(page)
    assert found["truthgpt_replica_requests", "ongoing"] == 2
    assert found["truthgpt_replica_requests", "queued"] == 1
    assert 'truthgpt_replica_requests{state="ongoing",replica="r1"} 2' in page
    assert after["truthgpt_replica_requests", "ongoing"] == 0
    assert after["truthgpt_replica_requests", "queued"] == 0
    assert after["truthgpt_replica_requests_total", ""] == 3


def test_memory_is_that_of_the_process_and_of_those_it_started() -> None:
    program = (
        "import time; kept = bytearray(200 << 20); print(len(kept), flush=True); time.sleep(60)"
    )
    shell = f'{sys.executable} -c "{program}" & wait'
    with subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == str(200 << 20)
        [child] = psutil.Process(parent.pid).children()
        try:
            found = resident_bytes(parent.pid)
            assert found >= 200 << 20
            assert found >= child.memory_info().rss
        finally:
            child.kill()
    assert resident_bytes(parent.pid) == 0
