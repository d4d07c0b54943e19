"""Requests wait for their turn, with keys and without, over real HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.access.turns import Turns
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_json
from truthgpt_serve.http.client_limits import read_turn_limit
from truthgpt_serve.queue_full import PLACE_HEADER
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.usage.counted import Usage, counting

OWNER = "model 'story'"


class Service:
    """A model that serves two requests at a time until they are let go; four may wait."""

    def __init__(self) -> None:
        self.queue = FairQueue(2, 4, OWNER)
        self.usages: list[Usage] = []
        self.served: list[str] = []
        self.hold = asyncio.Semaphore(0)
        turns = Turns(self._serve, self.queue, OWNER)
        self._app = BoundedRequests(turns, "story", max_body_bytes=1000, max_request_s=20)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = dict(scope["headers"])[b"x-name"].decode()
        identity = Identity(name, priority=5 if name == "first" else 0)
        usage = Usage()
        self.usages.append(usage)
        with counting(usage):
            await self._app({**scope, SCOPE_KEY: identity}, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.served.append(dict(scope["headers"])[b"x-name"].decode())
        if scope["method"] == "POST":
            await self.hold.acquire()
        await send_json(send, {})


@pytest.fixture
async def service() -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    service = Service()
    transport = httpx.ASGITransport(service)
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        yield service, client
        service.hold.release()


async def ask(
    client: httpx.AsyncClient, name: str, method: str = "POST", *, path: str = "/", **headers: str
) -> Any:
    given = {"x-name": name, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return await client.request(method, path, headers=given)


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_order_and_refusals(service: tuple[Service, httpx.AsyncClient]) -> None:
    model, client = service
    asked = []
    for name in ("a", "a", "a", "a", "a", "b", "first"):
        asked.append(asyncio.create_task(ask(client, name)))
        await until(lambda: model.queue.num_running + model.queue.num_waiting >= min(6, len(asked)))
    # `first` took the place of the newest of the key with the most.
    refused = await asked[4]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    assert model.usages[4].refusal == "queue"
    # What is read does not wait, nor what ends work.
    assert (await ask(client, "reader", "GET")).status_code == 200
    ender = asyncio.create_task(ask(client, "ender", path="/v1/responses/resp_1/cancel"))
    await until(lambda: "ender" in model.served)
    for _ in range(7):
        model.hold.release()
    answers = await asyncio.gather(*asked[:4], *asked[5:], ender)
    assert [answer.status_code for answer in answers] == [200] * 7
    assert model.served[:5] == ["a", "a", "reader", "ender", "first"]
    assert sorted(model.served[5:]) == ["a", "a", "b"]
    assert model.usages[0].queued_s == 0
    assert model.usages[5].queued_s > 0


async def test_a_client_that_leaves_never_begins(
    service: tuple[Service, httpx.AsyncClient],
) -> None:
    model, client = service
    running = [asyncio.create_task(ask(client, "a")) for _ in range(2)]
    await until(lambda: model.queue.num_running == 2)
    left = asyncio.create_task(ask(client, "left"))
    await until(lambda: model.queue.num_waiting == 1)
    left.cancel()
    await until(lambda: model.queue.num_waiting == 0)
    for _ in range(2):
        model.hold.release()
    await asyncio.gather(*running)
    assert model.served == ["a", "a"]
    assert model.queue.num_running == 0


async def test_without_keys_requests_come_in_their_order() -> None:
    model = Service()
    turns = Turns(model._serve, model.queue, OWNER)
    bounded = BoundedRequests(turns, "story", max_body_bytes=1000, max_request_s=20)
    transport = httpx.ASGITransport(bounded)
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        asked = []
        for name in "abcdefgh":
            asked.append(asyncio.create_task(ask(client, name)))
            await until(
                lambda: model.queue.num_running + model.queue.num_waiting >= min(6, len(asked))
            )
        refused = await asyncio.gather(*asked[6:])
        assert [answer.status_code for answer in refused] == [429, 429]
        for _ in range(6):
            await asyncio.sleep(0.05)
            model.hold.release()
        answers = await asyncio.gather(*asked[:6])
    assert [answer.status_code for answer in answers] == [200] * 6
    assert model.served == [*"abcdef"]
    # While others wait, an answer says how fast places come; of the first one nothing is known.
    told = [int(answer.headers.get(PLACE_HEADER, 0)) for answer in answers]
    assert told[0] == 0
    assert all(5_000 < place < 500_000 for place in told[1:4])
    assert told[5] == 0


async def test_websockets_wait_too_and_are_refused() -> None:
    model = Service()
    turns = Turns(model._serve, FairQueue(1, 1, OWNER), OWNER)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "headers": [(b"x-name", b"w")], "method": "POST"}
    first = asyncio.create_task(turns(scope, receive, send))
    second = asyncio.create_task(turns(scope, receive, send))
    await until(lambda: len(model.served) == 1)
    await turns(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]
    assert "queue of model 'story' is full" in sent[0]["reason"]
    model.hold.release()
    model.hold.release()
    await asyncio.gather(first, second)
    assert model.served == ["w", "w"]


async def test_deadlines(service: tuple[Service, httpx.AsyncClient]) -> None:
    model, client = service
    for _ in range(2):  # so that it is known how long requests take
        asked = asyncio.create_task(ask(client, "a"))
        await asyncio.sleep(0.2)
        model.hold.release()
        await asked
    running = [asyncio.create_task(ask(client, "a")) for _ in range(3)]
    await until(lambda: model.queue.num_waiting == 1)
    early = await ask(client, "b", x_request_timeout_ms="20")
    assert early.status_code == 429
    message = early.json()["error"]["message"]
    assert message.startswith("The turn of this request at model 'story' would come in about 0.")
    late = await ask(client, "b", x_request_timeout_ms="500")
    assert late.status_code == 429
    assert "has not come, and it may take 0.5 s" in late.json()["error"]["message"]
    assert model.queue.num_waiting == 1
    assert [usage.refusal for usage in model.usages[-2:]] == ["deadline", "deadline"]
    for _ in range(3):
        model.hold.release()
    assert [answer.status_code for answer in await asyncio.gather(*running)] == [200] * 3
    model.hold.release()
    assert (await ask(client, "b", x_request_timeout_ms="20")).status_code == 200


async def test_a_turn_that_leaves_no_time_for_the_work_is_refused() -> None:
    model = Service()
    turns = Turns(model._serve, FairQueue(1, 4, OWNER), OWNER, max_request_s=0.5)
    bounded = BoundedRequests(turns, "story", max_body_bytes=1000, max_request_s=5)
    transport = httpx.ASGITransport(bounded)
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        first = asyncio.create_task(ask(client, "a"))
        await asyncio.sleep(0.3)
        model.hold.release()
        assert (await first).status_code == 200  # requests take 0.3 s of their 0.5
        running = asyncio.create_task(ask(client, "a"))
        await until(lambda: len(model.served) == 2)
        waited = await ask(client, "b")
        assert waited.status_code == 429
        assert "requests may take 0.5 s with their waiting" in waited.json()["error"]["message"]
        waiting = asyncio.create_task(ask(client, "c"))
        await until(lambda: turns._queue.num_waiting == 1)
        refused = await ask(client, "d")  # behind another one: at once
        assert "would come in about" in refused.json()["error"]["message"]
        model.hold.release()
        model.hold.release()
        assert (await running).status_code == 200
        await waiting
    assert "b" not in model.served


async def test_an_application_cannot_say_how_fast_places_come() -> None:
    async def forge(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"X-TruthGPT-Place-US", b"-5"), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    transport = httpx.ASGITransport(Turns(forge, FairQueue(1, 1, OWNER), OWNER))
    async with httpx.AsyncClient(transport=transport, base_url="http://model") as client:
        answer = await client.post("/")
    assert PLACE_HEADER not in answer.headers
    assert answer.headers["x-own"] == "1"


@pytest.mark.parametrize("value", ["", "0", "-5", "1.5", "soon", "9999999999", "¹"])
def test_headers_that_say_no_time(value: str) -> None:
    headers = [(b"x-request-timeout-ms", value.encode("latin-1"))]
    with pytest.raises(RequestError, match=r"whole number of milliseconds from 1 to 999999999$"):
        read_turn_limit({"headers": headers})
    assert read_turn_limit({"headers": []}) is None
    assert read_turn_limit({"headers": [(b"x-request-timeout-ms", b"1500")]}) == 1.5
    assert read_turn_limit({"headers": [(b"x-request-timeout-ms", b"999999999")]}) == 999_999.999
