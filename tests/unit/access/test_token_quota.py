"""Requests count with what they may use, and then with what they used."""

from __future__ import annotations

import asyncio
import contextvars
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.access.identity import SCOPE_KEY, Identity, Limits
from truthgpt_serve.access.meter import Meter
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.access.token_quota import TokenQuota
from truthgpt_serve.errors import RateLimitError
from truthgpt_serve.http.asgi import Message, Receive, Scope, Send, send_json
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.server.sent_answer import SentAnswer
from truthgpt_serve.usage.counted import add_images, add_tokens, reserve_images


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Quota]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quota = Quota(tmp_path / "keys.yaml", "story", clock=lambda: 1e9)
    yield quota
    quota.close()


@dataclass
class Model:
    """An application that uses what it is told to, and keeps the bodies that it got."""

    work: Callable[[], Awaitable[None] | None] = lambda: None
    status: int = 200
    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        found = self.work()
        if found is not None:
            await found
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})


def ask(
    app: TokenQuota,
    identity: Identity,
    *pieces: bytes,
    method: str = "POST",
    path: str = "/v1/completions",
) -> dict[str, str]:
    """Sends a request; returns the headers of the answer."""
    messages = [
        {"type": "http.request", "body": piece, "more_body": index + 1 < len(pieces)}
        for index, piece in enumerate(pieces)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def serve() -> None:
        line = {"type": "http", "method": method, "path": path}
        scope: Scope = {**line, "headers": [], SCOPE_KEY: identity}
        metered = await Meter(app._quota, lambda ended: None).begin(identity, scope, send)

        async def serve_noted(scope: Scope, receive: Receive, send: Send) -> None:
            await app(scope, receive, SentAnswer(send).pass_on)

        await metered.answer(serve_noted, scope, receive)

    asyncio.run(serve())
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode().ljust(400)


def remaining(headers: dict[str, str]) -> int:
    return int(headers["x-ratelimit-remaining-tokens"])


TEAM = Identity("team", limits=Limits(tokens_per_minute=1000))


def test_an_estimate_and_then_what_was_used(quota: Quota) -> None:
    model = Model(lambda: add_tokens(30, 20))
    app = TokenQuota(model, quota)
    assert remaining(ask(app, TEAM, body(max_tokens=300))) == 600
    # The key's answers are short, but the next one may be as long as any.
    assert remaining(ask(app, TEAM, body(max_tokens=300))) == 1000 - 50 - 100 - 256
    assert model.bodies == [body(max_tokens=300)] * 2
    headers = ask(app, TEAM, body())
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert headers["x-ratelimit-reset-tokens"] == "60s"


def test_a_refusal_says_when_the_same_request_fits(quota: Quota) -> None:
    app = TokenQuota(Model(lambda: add_tokens(0, 950)), quota)
    ask(app, TEAM, body(max_tokens=1))
    with pytest.raises(RateLimitError) as refused:
        ask(app, TEAM, body(max_tokens=1))
    assert refused.value.retry_after_s == 61
    assert refused.value.message == (
        "The key 'team' may use 1000 tokens in a minute; try again in 61 s"
    )
    assert dict(refused.value.headers)[b"x-ratelimit-remaining-tokens"] == b"50"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/messages/count_tokens"])
def test_who_asks_for_the_number_of_tokens_uses_none(quota: Quota, path: str) -> None:
    app = TokenQuota(Model(), quota)
    for _ in range(9):
        assert "x-ratelimit-remaining-tokens" not in ask(app, TEAM, body(), path=path)
    assert remaining(ask(app, TEAM, body(max_tokens=300))) == 600


def test_what_asks_for_more_than_the_limit_is_let_in_alone(quota: Quota) -> None:
    app = TokenQuota(Model(lambda: add_tokens(2000, 3000)), quota)
    ask(app, TEAM, body(max_tokens=5000))
    with pytest.raises(RateLimitError):
        ask(app, TEAM, body(max_tokens=1))


def test_cached_tokens_count_by_their_weight(quota: Quota) -> None:
    team = Identity("team", limits=Limits(tokens_per_minute=1000), cached_token_weight=0.1)
    app = TokenQuota(Model(lambda: add_tokens(500, 20, cached=400)), quota)
    ask(app, team, body(max_tokens=1))
    assert remaining(ask(app, team, body(max_tokens=1))) == 1000 - (100 + 40 + 20) - 101


def test_a_failure_costs_what_was_done(quota: Quota) -> None:
    app = TokenQuota(Model(status=400), quota)
    ask(app, TEAM, body(max_tokens=700))
    assert remaining(ask(app, TEAM, body(max_tokens=700))) == 200

    def fail() -> None:
        add_tokens(100, 10)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        ask(TokenQuota(Model(fail), quota), TEAM, body(max_tokens=700))
    assert remaining(ask(app, TEAM, body(max_tokens=100))) == 1000 - 110 - 200


def test_an_answer_from_another_context_counts_with_what_was_done(quota: Quota) -> None:
    model = Model(lambda: add_tokens(10, 5))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_elsewhere(message: Message) -> None:
            await asyncio.create_task(send_all(send, message), context=contextvars.Context())

        await model(scope, receive, send_elsewhere)

    async def send_all(send: Send, message: Message) -> None:
        await send(message)

    ask(TokenQuota(app, quota), TEAM, body(max_tokens=700))
    assert remaining(ask(TokenQuota(Model(), quota), TEAM, body(max_tokens=100))) == 1000 - 15 - 200


def test_an_answer_to_a_client_that_has_left_counts_as_none(quota: Quota) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await send_json(send, {}, status=400)

    bounded = BoundedRequests(
        TokenQuota(app, quota), "story", max_body_bytes=2**20, max_request_s=9
    )
    messages: list[Message] = [
        {"type": "http.request", "body": body(max_tokens=200)},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def serve() -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": [], SCOPE_KEY: TEAM}
        scope |= {"path": "/v1/completions"}
        metered = await Meter(quota, lambda ended: None).begin(TEAM, scope, refuse)
        await metered.answer(bounded, scope, receive)

    async def refuse(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(serve())
    assert (
        remaining(ask(TokenQuota(Model(), quota), TEAM, body(max_tokens=100))) == 1000 - 300 - 200
    )


def test_a_client_that_leaves_before_the_answer_pays_the_estimate(quota: Quota) -> None:
    def leave() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        ask(TokenQuota(Model(leave), quota), TEAM, body(max_tokens=700))
    with pytest.raises(RateLimitError):
        ask(TokenQuota(Model(), quota), TEAM, body(max_tokens=700))


def test_an_application_may_send_no_headers(quota: Quota) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})

    assert remaining(ask(TokenQuota(app, quota), TEAM, body(max_tokens=100))) == 800


def test_a_model_that_does_not_count_costs_the_estimate(quota: Quota) -> None:
    app = TokenQuota(Model(), quota)
    for left in (800, 600):
        assert remaining(ask(app, TEAM, body(max_tokens=100))) == left


def test_limits_of_a_key_and_a_model(quota: Quota) -> None:
    few = ("st*", Limits(tokens_per_minute=150))
    team = Identity("team", limits=Limits(tokens_per_minute=1000), model_limits=(few,))
    app = TokenQuota(Model(lambda: add_tokens(100, 1)), quota)
    assert ask(app, team, body(max_tokens=1))["x-ratelimit-limit-tokens"] == "150"
    with pytest.raises(RateLimitError, match="150 tokens in a minute of the model 'story'"):
        ask(app, team, body(max_tokens=1))
    # What was refused for one limit does not count for the other.
    assert remaining(ask(app, TEAM, body(max_tokens=1))) == 1000 - 101 - 101


def test_long_bodies_pass_whole_and_unread(quota: Quota) -> None:
    model = Model(lambda: add_tokens(1, 1))
    pieces = [b"a" * 50_000] * 4
    ask(TokenQuota(model, quota), TEAM, *pieces)
    assert model.bodies == [b"".join(pieces)]


def test_images_count_with_their_work(quota: Quota) -> None:
    team = Identity("team", limits=Limits(image_megapixel_steps_per_minute=10.5))

    async def draw() -> None:
        await reserve_images(4.0)
        add_images(1, 4.0)

    async def fail() -> None:
        await reserve_images(4.0)
        raise OSError("gone")

    app = TokenQuota(Model(draw), quota)
    headers = ask(app, team, b"{}")
    assert headers["x-ratelimit-limit-image-megapixel-steps"] == "10.5"
    assert headers["x-ratelimit-remaining-image-megapixel-steps"] == "6"
    with pytest.raises(OSError, match="gone"):
        ask(TokenQuota(Model(fail), quota), team, b"{}")
    ask(app, team, b"{}")
    with pytest.raises(RateLimitError, match=r"10\.5 denoising steps times megapixels"):
        ask(app, team, b"{}")


def test_what_is_read_and_keys_without_limits_do_not_count(quota: Quota) -> None:
    app = TokenQuota(Model(lambda: add_tokens(5000, 1)), quota)
    for _ in range(3):
        assert ask(app, TEAM, b"", method="GET") == {}
        assert ask(app, Identity("free"), b"{}") == {}
