"""Blocking code, cancellation, order and limits: what users' classes get without asking."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from deployments.echo.config import FAMILY
from tests.support.sample_models import (
    AsyncTicks,
    Base,
    Blocking,
    BlockingAsync,
    Flood,
    Patient,
    PatientBatch,
    ReturnedTicks,
    Ticks,
    Upper,
    spec_of,
    wait_until,
)
from tests.support.servers import serve_asgi
from truthgpt_serve.config import ModelConfig, load_model_config
from truthgpt_serve.errors import (
    DeadlineError,
    OverloadedError,
    RegistryError,
    ServerError,
    UnavailableError,
)
from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.server import Application, ModelInstance, create_asgi_app
from truthgpt_serve.server.execution.codec import PlainCodec

HEALTH_S = 10.0
"""A sixth of what the models block, and long enough for a busy machine."""


class Running:
    """A served model: its address, its instance, and the application in between."""

    def __init__(self, cls: type, cfg: dict[str, Any] | None = None) -> None:
        self.instance = ModelInstance(spec_of(cls), load_model_config(cfg or {}), name="sample")
        self.app = Application(self.instance, owns_instance=True)
        self.url = ""

    @contextmanager
    def served(self) -> Iterator[Running]:
        with serve_asgi(self.app, lifespan="on") as url:
            self.url = url
            yield self

    def post(self, text: str, *, timeout: float = 60, **fields: Any) -> httpx.Response:
        body = {"model": "sample", "prompt": text, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=timeout)

    @contextmanager
    def asked(self, text: str, **fields: Any) -> Iterator[None]:
        """Sends a request, whose client leaves at the end of the block."""
        body = json.dumps({"model": "sample", "prompt": text, **fields}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            yield

    def health_s(self, client: httpx.Client) -> float:
        start = time.monotonic()
        assert client.get(f"{self.url}/health").status_code == 200
        return time.monotonic() - start


def running(cls: type, **serving: Any) -> Any:
    return Running(cls, {"serving": serving}).served()


@pytest.mark.parametrize("cls", [Blocking, BlockingAsync, Ticks])
def test_blocking_code_does_not_delay_health(
    cls: type[Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BlockingAsync, "block_s", 60)
    # One client for all: making one takes longer than the answer.
    with running(cls) as server, ThreadPoolExecutor(1) as pool, httpx.Client() as client:
        post = pool.submit(server.post, "x", stream=cls is Ticks, max_tokens=1000)
        wait_until(lambda: server.instance.ongoing)
        assert max(server.health_s(client) for _ in range(5)) < HEALTH_S
        assert not post.done()
        cls.last.release.set()
        assert post.result().status_code == 200


def test_a_class_with_only_infer_lives_in_one_thread_and_takes_one_request_at_a_time() -> None:
    with running(Blocking) as server, ThreadPoolExecutor(3) as pool:
        model = Blocking.last
        posts = [pool.submit(server.post, "a")]
        wait_until(lambda: len(model.events) == 2)
        posts += [pool.submit(server.post, text) for text in "bc"]
        wait_until(lambda: server.instance.ongoing == 3)
        assert len(model.events) == 2, "the others wait"
        model.release.set()
        assert [post.result().status_code for post in posts] == [200, 200, 200]
    events = [event for event in model.events if event[0] != "load"]
    assert [event[0] for event in events] == ["enter", "leave"] * 3
    threads = {event[-1] for event in model.events if event[0] in ("load", "enter")}
    assert len(threads) == 1
    assert threading.main_thread().ident not in threads


def test_a_cancelled_request_keeps_its_place_and_a_queued_one_never_runs() -> None:
    with running(Blocking) as server, ThreadPoolExecutor(1) as pool:
        model = Blocking.last
        with server.asked("first"):
            wait_until(lambda: "enter" in str(model.events))
            with server.asked("second"):
                wait_until(lambda: server.instance.ongoing == 2)
                third = pool.submit(server.post, "third")
                wait_until(lambda: server.instance.ongoing == 3)
        time.sleep(0.3)
        assert len(model.events) == 2, "the first still runs, so no other call may"
        model.release.set()
        assert third.result().status_code == 200
        entered = [event[1] for event in model.events if event[0] == "enter"]
        assert entered == ["first", "third"]
        wait_until(lambda: server.instance.ongoing == 0)


def test_an_asynchronous_class_takes_one_request_at_a_time_too() -> None:
    with running(BlockingAsync) as server, ThreadPoolExecutor(2) as pool:
        posts = [pool.submit(server.post, text) for text in "ab"]
        assert [post.result().status_code for post in posts] == [200, 200]
        assert [event[0] for event in BlockingAsync.last.events] == ["enter", "leave"] * 2


def test_a_queued_asynchronous_request_that_is_cancelled_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BlockingAsync, "block_s", 60)
    with running(BlockingAsync) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "first")
        wait_until(lambda: BlockingAsync.last.events)
        with server.asked("second"):
            wait_until(lambda: server.instance.ongoing == 2)
        time.sleep(1)  # the server hears of it; the model's own loop, which is blocked, cannot
        BlockingAsync.last.release.set()
        assert first.result().status_code == 200
        wait_until(lambda: server.instance.ongoing == 0)
        assert [event[1] for event in BlockingAsync.last.events] == ["first", "first"]


def test_too_many_waiting_requests_get_429() -> None:
    serving = {"max_ongoing_requests": 1, "max_queued_requests": 1}
    with running(Blocking, **serving) as server, ThreadPoolExecutor(2) as pool:
        posts = [pool.submit(server.post, "a") for _ in range(2)]
        wait_until(lambda: server.instance.ongoing == 2)
        answer = server.post("b")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "overloaded"
        Blocking.last.release.set()
        assert [post.result().status_code for post in posts] == [200, 200]
        assert server.post("c").status_code == 200


@pytest.mark.parametrize("cls", [Ticks, AsyncTicks, ReturnedTicks])
def test_a_stream_arrives_piece_by_piece_and_stops_when_the_client_leaves(
    cls: type[Ticks],
) -> None:
    with running(cls) as server:
        body = {"model": "sample", "prompt": "x", "stream": True}
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as answer:
            raw = answer.iter_raw()
            assert len(list(itertools.islice(raw, 6))) == 6
            assert "closed" not in cls.last.events  # it would go on for hours
        wait_until(lambda: "closed" in cls.last.events)
        wait_until(lambda: server.instance.ongoing == 0)


def test_an_asynchronous_infer_is_cancelled_when_the_client_leaves() -> None:
    with running(AsyncTicks) as server:
        with server.asked("x"):
            wait_until(lambda: "begun" in AsyncTicks.last.events)
        wait_until(lambda: "closed" in AsyncTicks.last.events)


@pytest.mark.parametrize("stream", [False, True])
def test_blocking_code_can_ask_whether_its_client_has_left(stream: bool) -> None:
    with running(Patient) as server:
        with server.asked("x", stream=stream):
            wait_until(lambda: "enter" in Patient.last.events)
        wait_until(lambda: Patient.last.events[1:] == ["enter", "told"])
        wait_until(lambda: server.instance.ongoing == 0)


def test_a_batch_is_told_when_all_of_its_clients_have_left() -> None:
    serving = {"max_ongoing_requests": 8, "batching": {"max_batch_size": 4}}
    with running(PatientBatch, **serving) as server, ThreadPoolExecutor(1) as pool:
        model = PatientBatch.last
        with ExitStack() as leaving:
            with server.asked("first"):
                wait_until(lambda: 1 in model.events)
                leaving.enter_context(server.asked("leaves"))
                stays = pool.submit(server.post, "stays")
                wait_until(lambda: server.instance.ongoing == 3)
            wait_until(lambda: model.events[-1] == 2)  # told, the thread went on to those that wait
        time.sleep(0.3)
        assert model.events[-1] == 2, "one client is left, so the batch goes on"
        model.release.set()
        assert stays.result().status_code == 200
        wait_until(lambda: server.instance.ongoing == 0)


def test_a_stop_text_closes_the_generator() -> None:
    with running(Ticks) as server:
        answer = server.post("x", stream=True, stop="3")
        assert answer.text.endswith("data: [DONE]\n\n")
        assert Ticks.last.events[-2:] == [2, "closed"]


async def test_a_slow_reader_holds_the_writer_back() -> None:
    instance = ModelInstance(spec_of(Flood), load_model_config({}), name="sample")
    await instance.start()
    taken = 0
    slow = asyncio.Event()

    async def emit(piece: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == 10:
            await slow.wait()
        if taken == 2000:
            await asyncio.sleep(60)

    async def until(number: int) -> None:
        async with asyncio.timeout(60):
            while taken != number:
                await asyncio.sleep(0.01)

    task = asyncio.create_task(instance.stream(PlainCodec({}), emit))
    await until(10)
    await asyncio.sleep(0.2)
    assert 10 <= Flood.last.made <= 200
    slow.set()
    await until(2000)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    made = Flood.last.made
    await asyncio.sleep(0.1)
    assert Flood.last.made <= min(made + 1, 2200)
    assert instance.ongoing == 0
    await instance.close()


@pytest.mark.long("waits for limits of time")
def test_a_request_has_a_time_limit() -> None:
    with running(AsyncTicks, max_request_s=2) as server:
        answer = server.post("x")
        assert answer.status_code == 504
        error = answer.json()["error"]
        assert error["message"] == "the model did not finish within 2 s, its time limit"
        streamed = server.post("x", stream=True)
        assert streamed.status_code == 200
        assert '"timeout_error"' in streamed.text.split("\n\n")[-2]
        assert "[DONE]" not in streamed.text
        wait_until(lambda: server.instance.ongoing == 0)


def test_clients_that_leave_at_once_leave_nothing_behind() -> None:
    cfg = {"serving": {"engine": {"token_interval_s": 0.005, "num_tokens": 64}}}
    instance = ModelInstance(FAMILY, load_model_config(cfg), name="echo")
    with serve_asgi(Application(instance, owns_instance=True), lifespan="on") as url:

        async def one(client: httpx.AsyncClient, number: int) -> bool:
            body = {"model": "echo", "prompt": "a b", "stream": True}
            limit_s = 0.001 * (number % 150) if number % 2 else 10
            try:
                async with asyncio.timeout(limit_s):
                    answer = await client.post(f"{url}/v1/completions", json=body)
                    return answer.text.endswith("data: [DONE]\n\n")
            except (TimeoutError, httpx.HTTPError):
                return False

        async def many() -> list[bool]:
            limits = httpx.Limits(max_connections=40)
            async with httpx.AsyncClient(limits=limits, timeout=30) as client:
                return await asyncio.gather(*(one(client, number) for number in range(200)))

        done = asyncio.run(many())
        assert sum(done) == 100
        wait_until(lambda: instance.ongoing == 0)
        assert instance.model.ongoing == 0
        gc.collect()


class Constructed(Upper):
    def __init__(self, size: int) -> None:
        super().__init__()


class Generating(Upper):
    def infer(self, inputs: dict[str, Any]) -> Any:
        yield {"text": "a"}


class Silent(Upper):
    def infer(self) -> Any:  # type: ignore[override]  # what a newcomer may write
        return {"text": "a"}


class Needy(Upper):
    def stream(self, inputs: dict[str, Any], size: int) -> Any:
        yield {"text": "a"}


class Broken(Upper):
    def load(self, cfg: dict[str, Any]) -> None:
        raise OSError("no weights at /nowhere")


@pytest.mark.parametrize(
    ("cls", "error", "message"),
    [
        (Constructed, RegistryError, "Constructed() failed: "),
        (Generating, RegistryError, "Generating.infer is a generator; name the method"),
        (Silent, RegistryError, "write `def infer(self, inputs)`"),
        (Needy, RegistryError, "missing a required argument: 'size'"),
        (Broken, OSError, "no weights at /nowhere"),
    ],
)
async def test_a_class_that_does_not_start(cls: type, error: type, message: str) -> None:
    instance = ModelInstance(spec_of(cls), load_model_config({}), name="sample")
    with pytest.raises(error) as caught:
        await instance.start()
    assert message in str(caught.value)
    await instance.close()
    with pytest.raises(ServerError, match="is not started"):
        await instance.infer({})


class Full(Upper):
    """Has every optional method."""

    name = ""

    def set_name(self, name: str) -> None:
        self.name = name

    async def load(self, cfg: dict[str, Any]) -> None:  # type: ignore[override]  # the contract allows async too
        await asyncio.sleep(0)
        self.events.append(self.name)

    async def check_health(self) -> None:
        await asyncio.sleep(float(len(self.events) > 1))

    def create_asgi_app(self) -> Any:
        return self.answer

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.events.append("asked")

    async def close(self) -> None:
        self.events.append("closed")


async def test_every_optional_method_is_used() -> None:
    instance = ModelInstance(
        spec_of(Full),
        load_model_config({"serving": {"health_check_timeout_s": 0.1}}),
        name="sample",
    )
    await instance.start()
    assert Full.last.events == ["sample"], "the name is known before loading"
    await instance.check_health()
    Full.last.events.append("slow")
    with pytest.raises(DeadlineError, match=r"Full.check_health did not return within 0.1 s"):
        await instance.check_health()
    application = await create_asgi_app(instance)
    await application({"type": "lifespan"}, None, None)
    assert Full.last.events[-1] == "asked"
    await instance.close()
    assert Full.last.events[-1] == "closed"
    await instance.close()


async def test_a_process_without_a_file_descriptor_is_not_healthy() -> None:
    instance = ModelInstance(spec_of(Upper), load_model_config({}), name="sample")
    await instance.start()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(UnavailableError, match="Upper has no file descriptor left"):
            await instance.check_health()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    await instance.check_health()
    await instance.close()


async def test_the_limits_follow_the_class_unless_the_configuration_says() -> None:
    assert request_limits(ModelConfig(), spec_of(Upper)) == (1, 2)
    assert request_limits(ModelConfig(), spec_of(Ticks)) == (64, 128)
    config = load_model_config({"serving": {"max_ongoing_requests": 5}})
    assert request_limits(config, spec_of(Ticks)) == (5, 10)


class Batching(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        self.events.append([inputs["text"] for inputs in batch])
        self.release.wait(1)
        if any(inputs["text"] == "bad" for inputs in batch):
            raise ValueError("bad inputs")
        if any(inputs["text"] == "short" for inputs in batch):
            return []
        return [{"text": inputs["text"].upper()} for inputs in batch]


class AsyncBatching(Batching):
    async def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:  # type: ignore[override]  # the contract allows async too
        await asyncio.sleep(0.01)
        self.release.set()
        return super().infer_batch(batch)


async def test_requests_are_batched() -> None:
    cfg = {"serving": {"batching": {"max_batch_size": 3, "batch_wait_timeout_s": 0.05}}}
    instance = ModelInstance(spec_of(Batching), load_model_config(cfg), name="sample")
    await instance.start()
    model = Batching.last
    tasks = [asyncio.create_task(instance.infer({"text": text})) for text in "abcde"]
    await asyncio.sleep(0.02)
    assert model.events[1:] == [["a", "b", "c"]], "a full batch does not wait"
    tasks[3].cancel()
    model.release.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answers[i] for i in (0, 1, 2, 4)] == [{"text": text} for text in "ABCE"]
    assert model.events[2:] == [["e"]], "a cancelled request is in no batch"
    assert instance.ongoing == 0
    await instance.close()


@pytest.mark.parametrize("cls", [Batching, AsyncBatching])
async def test_a_bad_request_in_a_batch_fails_alone(cls: type[Batching]) -> None:
    instance = ModelInstance(spec_of(cls), load_model_config({}), name="sample")
    await instance.start()
    cls.last.release.set()
    texts = ["a", "bad", "b", "short"]
    tasks = [instance.infer({"text": text}) for text in texts]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert (answers[0], answers[2]) == ({"text": "A"}, {"text": "B"})
    assert str(answers[1]) == "bad inputs"
    assert "returned 0 outputs for 1 inputs; it returns one for each" in str(answers[3])
    await instance.close()


async def test_a_batching_class_has_a_bounded_queue() -> None:
    serving = {"max_ongoing_requests": 2, "max_queued_requests": 1}
    instance = ModelInstance(
        spec_of(Batching), load_model_config({"serving": serving}), name="sample"
    )
    await instance.start()
    tasks = [asyncio.create_task(instance.infer({"text": "a"})) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(OverloadedError):
        await instance.infer({"text": "b"})
    Batching.last.release.set()
    assert len(await asyncio.gather(*tasks)) == 3
    await instance.close()
