"""Health checks and scrapes pass a full application by, and are bounded themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from truthgpt_serve.http import probes
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_bytes
from truthgpt_serve.http.probes import Probes, refuse_metrics

MOUNT = "/models/m"
PATHS = ("/health", "/metrics")


class Named:
    """Answers with its name and the path that it was mounted at."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, f"{self.name} {scope.get('root_path')}".encode(), b"text/plain")


async def ask(app: Any, path: str, method: str = "GET", root_path: str = "") -> tuple[int, str]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": path, "headers": [], "root_path": root_path}
    await app(scope, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/models/m/health", "probed /models/m"),
        ("HEAD", "/models/m/metrics", "probed /models/m"),
        ("POST", "/models/m/metrics", "served "),
        ("GET", "/models/m/metrics/", "probed /models/m"),
        ("GET", "/models/m/", "served "),
        ("GET", "/models/m/metrics//", "served "),
        ("GET", "/models/m/v1/models", "served "),
        ("GET", "/models/mm/metrics", "served "),
        ("GET", "/metrics", "served "),
    ],
)
async def test_only_probes_go_past_the_queue(method: str, path: str, answer: str) -> None:
    app = Probes(Named("served"), Named("probed"), MOUNT, PATHS)
    assert await ask(app, path, method) == (200, answer)


async def test_a_root_path_of_the_server_stands_in_front() -> None:
    app = Probes(Named("served"), Named("probed"), MOUNT, PATHS)
    found = await ask(app, f"/all{MOUNT}/health", root_path="/all")
    assert found == (200, "probed /all/models/m")


async def test_probes_are_bounded_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "MAX_TOGETHER", 2)
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await send_bytes(send, b"slow", b"text/plain")

    app = Probes(Named("served"), slow, MOUNT, PATHS)
    waiting = [asyncio.create_task(ask(app, f"{MOUNT}/health")) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await ask(app, f"{MOUNT}/health"))[0] == 429
    release.set()
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200]
    assert (await ask(app, f"{MOUNT}/health"))[0] == 200


async def test_a_probe_that_hangs_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TIMEOUT_S", 0.05)

    async def hang(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(60)

    status, body = await ask(Probes(Named("served"), hang, MOUNT, PATHS), f"{MOUNT}/metrics")
    assert status == 503
    assert "/models/m/metrics was not answered within 0.05 s" in body


async def test_a_scrape_wakes_no_model() -> None:
    app = refuse_metrics(Named("served"))
    status, body = await ask(app, f"{MOUNT}/metrics")
    assert status == 503
    assert "no running replica" in body
    assert (await ask(app, f"{MOUNT}/metrics/"))[0] == 503
    for path, method in (("v1/completions", "POST"), ("metrics", "POST"), ("own/metrics", "GET")):
        assert (await ask(app, f"{MOUNT}/{path}", method))[0] == 200
