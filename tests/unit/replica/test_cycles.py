"""Requests leave nothing behind that only the garbage collector frees.

It would take a fifth of a busy replica's time, and hold what requests brought for longer.
"""

from __future__ import annotations

import asyncio
import json
import types
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray import serve

from tests.support.cycles import without_cycles
from truthgpt_serve.access.key_edit import add_key
from truthgpt_serve.access.settings import Auth
from truthgpt_serve.http.probes import Probes
from truthgpt_serve.replica.classes import ModelReplica
from truthgpt_serve.server.bounded import WATCH_S

NUM_REQUESTS = 30
LIMITS = {"requests_per_minute": 10**6, "tokens_per_minute": 10**7, "max_concurrent": 100}
CONFIG = {
    "model": {"family": "echo"},
    "hardware": {"gpus": 0},
    "serving": {"engine": {"token_interval_s": 0.001}},
}
CHAT = {"model": "x", "messages": [{"role": "user", "content": "one two three"}]}

# Serve awaits `__del__`; a plain interpreter does not.
Replica: Any = type("Replica", (ModelReplica,), {"__del__": lambda self: None})


class Client:
    """Sends requests to the application of a replica, as Ray's server does."""

    def __init__(self, app: Any, keys: dict[str, str]) -> None:
        self._app = app
        self._keys = keys

    async def ask(self, key: str, path: str, body: dict[str, Any], *, leaves: bool = False) -> int:
        """Returns the status; a client that leaves does so at the first piece."""
        data = json.dumps(body).encode()
        messages = [{"type": "http.request", "body": data, "more_body": False}]
        seen: list[Any] = []
        began, gone = asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            seen.append(message.get("status"))
            if message["type"] == "http.response.body":
                began.set()

        task = asyncio.create_task(self._app(self._scope(key, path, data), receive, send))
        if leaves:
            await began.wait()
            await asyncio.sleep(2 * WATCH_S)
            gone.set()
        with suppress(asyncio.CancelledError):
            await task
        return int(seen[0])

    def _scope(self, key: str, path: str, data: bytes) -> dict[str, Any]:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(data)),
            (b"authorization", b"Bearer " + self._keys[key].encode()),
        ]
        return {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
            **{"method": "POST", "scheme": "http", "root_path": "", "path": path},
            **{"raw_path": path.encode(), "query_string": b"", "headers": headers, "state": {}},
            **{"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)},
        }


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Client]:
    file = tmp_path / "keys.yaml"
    none = {**LIMITS, "requests_per_minute": 1}
    keys = {
        "free": add_key(file, {"name": "free"}),
        "limited": add_key(file, {"name": "limited", **LIMITS}),
        "used": add_key(file, {"name": "used", **none}),
        "spent": add_key(file, {"name": "spent", **LIMITS, "tokens_per_minute": 1}),
    }
    context = types.SimpleNamespace(app_name="x", replica_tag="x#one")
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr("truthgpt_serve.replica.classes.open_recorder", lambda *_: None)
    aside: list[Any] = []
    monkeypatch.setattr(
        "truthgpt_serve.replica.classes.answer_aside", lambda *given: aside.extend(given)
    )
    replica = Replica(CONFIG, auth=Auth(str(file)))
    app = await replica.__serve_build_asgi_app__()
    probes, paths, wrap, guard = aside
    yield Client(guard(Probes(wrap(app), probes, "", paths), ""), keys)
    await ModelReplica.__del__(replica)


CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "whole": ("free", "/v1/chat/completions", CHAT, 200),
    "stream": ("free", "/v1/chat/completions", {**CHAT, "stream": True}, 200),
    "limits": ("limited", "/v1/chat/completions", CHAT, 200),
    "stream with limits": ("limited", "/v1/chat/completions", {**CHAT, "stream": True}, 200),
    "messages": ("free", "/v1/messages", {**CHAT, "max_tokens": 4}, 200),
    "completions": ("free", "/v1/completions", {"model": "x", "prompt": "one"}, 200),
    "bad value": ("free", "/v1/chat/completions", {**CHAT, "max_tokens": -1}, 400),
    "no such route": ("free", "/v1/nothing", CHAT, 404),
    "too many": ("used", "/v1/chat/completions", CHAT, 429),
    "too many tokens": ("spent", "/v1/chat/completions", CHAT, 429),
}


@pytest.mark.parametrize("name", CASES)
async def test_an_answered_request_leaves_no_cycles(client: Client, name: str) -> None:
    key, path, body, status = CASES[name]
    await client.ask(key, path, body)  # what is made once
    with without_cycles(NUM_REQUESTS):
        for _ in range(NUM_REQUESTS):
            assert await client.ask(key, path, body) == status


async def test_a_client_that_leaves_a_stream_leaves_no_cycles(client: Client) -> None:
    body = {**CHAT, "stream": True, "max_tokens": 200}
    await client.ask("limited", "/v1/chat/completions", body, leaves=True)
    with without_cycles(NUM_REQUESTS):
        for _ in range(NUM_REQUESTS):
            await client.ask("limited", "/v1/chat/completions", body, leaves=True)
