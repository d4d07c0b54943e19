"""The service is asked on this machine, through no proxy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.service.next_steps import describe_service
from truthgpt_serve.cluster.service.readiness import ModelStatus, Readiness, ask_ready

NOWHERE = "http://127.0.0.1:9"


LOADING, RUNNING = ModelStatus("DEPLOYING"), ModelStatus("RUNNING")


def answer(**models: ModelStatus) -> Readiness:
    ready = all(model.status == "RUNNING" for model in models.values())
    return Readiness(answered=True, ready=ready, models=models)


def test_no_proxy_is_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        body = b'{"status": "ready", "models": {"a": {"status": "RUNNING"}}}'
        start = {"type": "http.response.start", "status": 200, "headers": []}
        await send(start)
        await send({"type": "http.response.body", "body": body})

    with serve_asgi(serve) as url:
        assert ask_ready(url) == answer(a=RUNNING)
        assert describe_service(url, {"a": 1.0})[0].startswith("  a ")


@pytest.mark.parametrize("key", [None, "tgpt-one", "not one\nheader"])
def test_the_key_of_the_environment_goes_with_it(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]).get(b"authorization"))
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b'{"models": {}}'})

    monkeypatch.delenv("TRUTHGPT_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("TRUTHGPT_API_KEY", key)
    with serve_asgi(serve) as url:
        assert ask_ready(url).answered
    assert seen == [b"Bearer tgpt-one" if key == "tgpt-one" else None]
