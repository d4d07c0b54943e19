"""How the pages talk to the service, over real HTTP, with real models behind the router."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress

import pytest

from tests.support.cli_service import Answer, envelope, events, serve
from tests.support.playground_service import Models, serve_models
from tests.support.sample_models import wait_until
from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import Receive, Scope, Send, header, send_json
from truthgpt_serve.playground.client import ServiceClient, ServiceFault
from truthgpt_serve.playground.running import Running

KEY = "sk-secret-1"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, Models]]:
    with serve_models() as found:
        yield found


@pytest.fixture
async def client(service: tuple[str, Models]) -> AsyncIterator[ServiceClient]:
    client = ServiceClient(service[0], timeout_s=30)
    yield client
    await client.close()


def chat(model: str, text: str, num_tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "messages": messages, "max_tokens": num_tokens, "stream": True}


async def test_models_have_their_task(client: ServiceClient) -> None:
    models = {one["id"]: one["card"]["task"] for one in await client.models("")}
    assert models["echo"] == "text-generation"
    assert models["painter"] == "image-generation"
    assert models["letters"] == "embedding"
    assert (await client.readiness(""))["status"] == "ready"


async def test_a_stream_comes_event_by_event(client: ServiceClient) -> None:
    found = [event async for event in client.stream(CHAT, "", chat("echo", "a b", 4))]
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found) == " a b a b"


@pytest.mark.parametrize("how", ["stop", "close", "page", "all"])
async def test_the_work_ends_at_the_service(
    client: ServiceClient, service: tuple[str, Models], how: str
) -> None:
    model, running, seen = service[1].hosts["slow"].model, Running(), 0

    async def work(changed: Callable[[], None]) -> None:
        async with aclosing(client.stream(CHAT, "", chat("slow", "a", 600))) as found:
            async for _ in found:
                changed()

    async with aclosing(running.follow("page", "chat", work)) as updates:
        async for _ in updates:
            seen += 1
            if seen == 3:
                assert model.ongoing == 1
                assert len(running) == 1
                if how == "close":
                    break
                ends = {"page": "page", "all": None}
                running.stop("page", "chat") if how == "stop" else running.stop_all(ends[how])
    assert len(running) == 0
    assert seen < 100
    await asyncio.to_thread(wait_until, lambda: model.ongoing == 0)


async def test_a_second_request_of_a_page_ends_the_first(client: ServiceClient) -> None:
    running, ended = Running(), []

    async def follow(name: str, seconds: float) -> None:
        async def work(changed: Callable[[], None]) -> None:
            await asyncio.sleep(seconds)
            ended.append(name)

        async for _ in running.follow("page", "chat", work):
            pass

    first = asyncio.create_task(follow("first", 30))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(follow("second", 0), 5)
    await asyncio.wait_for(first, 5)
    assert ended == ["second"]


async def test_what_the_service_refuses_is_readable(client: ServiceClient) -> None:
    with pytest.raises(ServiceFault, match="nosuch"):
        await client.post(CHAT, "", json={"model": "nosuch", "messages": []})
    with pytest.raises(ServiceFault, match="temperature"):
        async for _ in client.stream(CHAT, "", {**chat("echo", "a", 1), "temperature": -1}):
            pass


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(envelope("no"), 401), "no: check the API key"),
        (Answer(b"<html>", 502), "The service answered with status 502 and no message"),
        (Answer(b"[" * 100_000, 500), "The service answered with status 500 and no message"),
        (Answer(b"{", 200), "/v1/models is not JSON"),
        (Answer({"data": 3}), "/v1/models is not a list of models"),
    ],
)
async def test_other_answers_are_readable(answer: Answer, said: str) -> None:
    with serve({"/v1/models": answer}) as found:
        client = ServiceClient(found.url)
        with pytest.raises(ServiceFault, match=said) as caught:
            await client.models(KEY)
        assert KEY not in str(caught.value)
        assert found.requests[0].headers["authorization"] == f"Bearer {KEY}"
        await client.close()


async def test_an_error_in_a_stream_and_no_service_there() -> None:
    pieces = events({"choices": []}, envelope("the engine died"), done=False)
    with serve({CHAT: Answer(pieces=pieces, content_type="text/event-stream")}) as found:
        client = ServiceClient(found.url)
        with pytest.raises(ServiceFault, match="the engine died"):
            async for _ in client.stream(CHAT, "", {"model": "m"}):
                pass
        await client.close()
    client = ServiceClient("http://127.0.0.1:9")
    with pytest.raises(ServiceFault, match=r"No service answers at http://127\.0\.0\.1:9"):
        await client.readiness("")
    await client.close()


@pytest.mark.parametrize("key", ["a b", "é", "a\nb", "x" * 5000])
async def test_a_key_that_no_header_carries_is_refused_without_showing_it(key: str) -> None:
    client = ServiceClient("http://127.0.0.1:9")
    with pytest.raises(ServiceFault, match="API key") as caught:
        await client.models(key)
    assert json.dumps(key)[1:-1] not in str(caught.value)
    await client.close()


async def test_a_slow_service_is_not_waited_for(service: tuple[str, Models]) -> None:
    client = ServiceClient(service[0], timeout_s=0.5)
    with pytest.raises(ServiceFault, match="did not answer in time"):
        async for _ in client.stream(CHAT, "", chat("slow", "a", 600)):
            pass
    await client.close()


class Counted:
    """A service with many models that counts what it is asked."""

    def __init__(self, number: int) -> None:
        self.names = [f"m{at}" for at in range(number)]
        self.asked: Counter[str] = Counter()
        self.keys: set[bytes | None] = set()
        self.running = self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, key = scope["path"], header(scope["headers"], b"authorization")
        self.asked[path] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        name = path.removeprefix("/v1/models").strip("/")
        if not name:
            entries = [{"id": one, "object": "model"} for one in self.names]
            await send_json(send, {"object": "list", "data": entries})
        elif key == b"Bearer none":
            await send_json(send, {"error": {"message": "no"}}, status=403)
        else:
            await send_json(send, {"id": name, "card": {"task": "embedding"}})


async def test_pages_share_the_list_of_models() -> None:
    service = Counted(60)
    with serve_asgi(service) as url:
        client = ServiceClient(url)
        try:
            lists = await asyncio.gather(*(client.models("") for _ in range(30)))
            assert all(len(one) == 60 for one in lists)
            assert set(service.asked.values()) == {1}
            with suppress(TimeoutError):  # one who leaves does not end it for the others
                await asyncio.wait_for(client.models("other"), 0.001)
            assert len(await client.models("other")) == 60
            assert service.asked["/v1/models"] == 2

            keys = [client.models(f"key-{at}") for at in range(60)]
            found = await asyncio.gather(*keys)
            assert all(model["card"]["task"] == "embedding" for one in found for model in one)
            assert max(service.asked[f"/v1/models/{name}"] for name in service.names[1:]) <= 10
            assert service.most <= 12

            refused = await client.models("none")
            assert [one for one in refused if "card" in one] == []
        finally:
            await client.close()


async def test_lists_of_models_are_bounded() -> None:
    with serve_asgi(Counted(1)) as url:
        client = ServiceClient(url)
        try:
            keys = [client.models(f"key-{at}") for at in range(100)]
            found = await asyncio.gather(*keys, return_exceptions=True)
            busy = [one for one in found if isinstance(one, ServiceFault) and "busy" in str(one)]
            assert len(busy) == 36
            assert len(await client.models("later")) == 1
        finally:
            await client.close()
