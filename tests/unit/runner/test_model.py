"""A model of any family, with and without an event loop: `build_model`, `build_async_model`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.support.sample_models import wait_until
from truthgpt_serve import MODEL_REGISTRY, build_async_model, build_model, register_model
from truthgpt_serve.cancellation import is_cancelled
from truthgpt_serve.errors import RequestError, ServerError
from truthgpt_serve.runner.async_model import AsyncLocalModel
from truthgpt_serve.runner.model import LocalModel

THREAD = "truthgpt-model"


class Notes:
    """What the models of the tests below did."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.threads: dict[str, threading.Thread] = {}
        self.cancelled = False

    def add(self, step: str) -> None:
        self.steps.append(step)
        self.threads[step] = threading.current_thread()


@pytest.fixture
def notes() -> Iterator[Notes]:
    """Registers `tg-blocking` and `tg-awaited`, which do the same."""
    families = dict(MODEL_REGISTRY._registered)
    notes = Notes()
    _register_blocking(notes)
    _register_awaited(notes)
    yield notes
    MODEL_REGISTRY._registered.clear()
    MODEL_REGISTRY._registered.update(families)
    wait_until(lambda: not left_threads())


def left_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def _register_blocking(notes: Notes) -> None:
    @register_model("tg-blocking")
    class Blocking:
        size = 3

        def load(self, cfg: dict[str, Any]) -> None:
            notes.add("load")

        def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
            notes.add("infer")
            if "error" in inputs:
                raise inputs["error"]
            while inputs.get("waits") and not is_cancelled():
                time.sleep(0.005)
            notes.cancelled = is_cancelled()
            return {"text": inputs["text"]}

        def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
            try:
                for index in range(inputs["number"]):
                    notes.add(f"item {index}")
                    yield {"text": str(index)}
            finally:
                notes.add("stream closed")

        def check_health(self) -> str:
            return "well"

        def close(self) -> None:
            notes.add("close")


def _register_awaited(notes: Notes) -> None:
    @register_model("tg-awaited")
    class Awaited:
        size = 3

        async def load(self, cfg: dict[str, Any]) -> None:
            await asyncio.sleep(0)
            notes.add("load")

        async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
            notes.add("infer")
            if "error" in inputs:
                raise inputs["error"]
            try:
                await asyncio.sleep(60 if inputs.get("waits") else 0)
            except asyncio.CancelledError:
                notes.cancelled = True
                raise
            return {"text": inputs["text"]}

        async def stream(self, inputs: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
            try:
                async with asyncio.timeout(60):  # wants the same task at its end
                    for index in range(inputs["number"]):
                        notes.add(f"item {index}")
                        yield {"text": str(index)}
                        await asyncio.sleep(0)
            finally:
                await asyncio.sleep(0)
                notes.add("stream closed")

        async def check_health(self) -> str:
            return "well"

        async def close(self) -> None:
            await asyncio.sleep(0)
            notes.add("close")


both = pytest.mark.parametrize("family", ["tg-blocking", "tg-awaited"])


@both
@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_without_an_event_loop_or_beside_one(
    notes: Notes, family: str, inside_a_loop: bool
) -> None:
    def use() -> None:
        with build_model(family) as model:
            assert isinstance(model, LocalModel)
            assert model.infer({"text": "a"}) == {"text": "a"}
            assert [item["text"] for item in model.stream({"number": 3})] == ["0", "1", "2"]
            assert (model.size, model.instance.size) == (3, 3)
            assert model.check_health() == "well"
            with pytest.raises(AttributeError, match="no attribute 'absent'"):
                _ = model.absent
        model.close()

    async def use_in_loop() -> None:
        use()

    asyncio.run(use_in_loop()) if inside_a_loop else use()
    items = ["item 0", "item 1", "item 2", "stream closed"]
    assert notes.steps == ["load", "infer", *items, "close"]


@both
async def test_with_an_event_loop(notes: Notes, family: str) -> None:
    async with await build_async_model(family) as model:
        assert isinstance(model, AsyncLocalModel)
        assert await model.infer({"text": "a"}) == {"text": "a"}
        assert [item["text"] async for item in model.stream({"number": 3})] == ["0", "1", "2"]
        assert (model.size, model.instance.size) == (3, 3)
        with pytest.raises(AttributeError, match="no attribute 'absent'"):
            _ = model.absent
    await model.close()
    items = ["item 0", "item 1", "item 2", "stream closed"]
    assert notes.steps == ["load", "infer", *items, "close"]
    with pytest.raises(ServerError, match="the model is closed"):
        await model.infer({"text": "a"})
    with pytest.raises(ServerError, match="the model is closed"):
        await anext(model.stream({"number": 1}))
    used = set(notes.threads.values())
    main = threading.main_thread()
    assert used == {main} if family == "tg-awaited" else len(used) == 1 and main not in used


@both
def test_blocking_methods_run_in_the_callers_thread(notes: Notes, family: str) -> None:
    with build_model(family) as model:
        model.infer({"text": "a"})
    used = {thread.name for thread in notes.threads.values()}
    assert used == {THREAD if family == "tg-awaited" else threading.current_thread().name}


@both
def test_a_stream_that_is_left_is_closed(notes: Notes, family: str) -> None:
    with build_model(family) as model:
        stream = model.stream({"number": 100})
        assert next(stream) == {"text": "0"}
        stream.close()
        assert notes.steps == ["load", "item 0", "stream closed"]
        next(stream := model.stream({"number": 100}))
        del stream
        assert notes.steps[3:] == ["item 0", "stream closed"]
        model.stream({"number": 100})
        assert len(notes.steps) == 5  # nothing begins before the first item is wanted


@both
async def test_an_async_stream_that_is_left_is_closed(notes: Notes, family: str) -> None:
    async with await build_async_model(family) as model:
        async with aclosing(model.stream({"number": 100})) as stream:
            assert await anext(stream) == {"text": "0"}
        assert notes.steps == ["load", "item 0", "stream closed"]


@both
def test_an_error_of_the_class(notes: Notes, family: str) -> None:
    with pytest.raises(RequestError, match="not so"), build_model(family) as model:
        model.infer({"error": RequestError("not so")})
    assert notes.steps == ["load", "infer", "close"]


@both
async def test_an_error_of_the_class_with_an_event_loop(notes: Notes, family: str) -> None:
    model = await build_async_model(family)
    with pytest.raises(RequestError, match="not so"):
        async with model:
            await model.infer({"error": RequestError("not so")})
    assert notes.steps == ["load", "infer", "close"]


def test_what_would_end_the_event_loop_is_an_error(notes: Notes) -> None:
    with build_model("tg-awaited") as model:
        with pytest.raises(RuntimeError, match="the model raised SystemExit"):
            model.infer({"error": SystemExit(1)})
        assert model.infer({"text": "a"}) == {"text": "a"}


@both
async def test_a_cancelled_call_ends(notes: Notes, family: str) -> None:
    async with await build_async_model(family) as model:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(model.infer({"waits": True, "text": "a"}), 0.05)
        await asyncio.to_thread(wait_until, lambda: notes.cancelled)
        assert await model.infer({"text": "b"}) == {"text": "b"}


def test_an_interrupted_call_ends(notes: Notes) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with build_model("tg-awaited") as model:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            model.infer({"waits": True, "text": "a"})
        wait_until(lambda: notes.cancelled)
        timer.join()
        assert model.infer({"text": "b"}) == {"text": "b"}
    signal.signal(signal.SIGINT, before)


def test_calls_from_several_threads_run_together(notes: Notes) -> None:
    with build_model("tg-awaited") as model:
        answers: list[Any] = []
        waiting = threading.Thread(target=_note_error, args=(answers, model, {"waits": True}))
        waiting.start()
        wait_until(lambda: "infer" in notes.steps)
        assert model.infer({"text": "b"}) == {"text": "b"}
        stream = model.stream({"number": 100})
        next(stream)
    waiting.join(10)
    assert answers == ["ServerError: the model was closed before it answered"]
    assert notes.cancelled
    assert notes.steps[-2:] == ["stream closed", "close"]
    with pytest.raises(ServerError, match="the model is closed"):
        next(stream)
    with pytest.raises(ServerError, match="the model is closed"):
        model.infer({"text": "b"})
    model.close()
    assert notes.steps.count("close") == 1


def _note_error(answers: list[Any], model: LocalModel, inputs: dict[str, Any]) -> None:
    try:
        answers.append(model.infer(inputs))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")


def test_an_error_while_a_stream_is_closed_is_raised(notes: Notes) -> None:
    @register_model("tg-fragile")
    class Fragile:
        def load(self, cfg: Any) -> None: ...
        def infer(self, inputs: Any) -> None: ...
        async def stream(self, inputs: Any) -> AsyncIterator[int]:
            try:
                yield 1
                raise ValueError("after the first")
            except GeneratorExit:
                raise OSError("while it closed") from None

    with build_model("tg-fragile") as model:
        stream = model.stream({})
        next(stream)
        with pytest.raises(OSError, match="while it closed"):
            stream.close()
        with pytest.raises(ValueError, match="after the first"):
            list(model.stream({}))


@both
def test_a_model_that_is_let_go_is_closed(notes: Notes, family: str) -> None:
    model = build_model(family)
    model.infer({"text": "a"})
    with pytest.warns(ResourceWarning, match=r"the model of .* was not closed: call close\(\)"):
        del model
    assert notes.steps[-1] == "close"


@both
async def test_an_async_model_that_is_let_go_is_closed(notes: Notes, family: str) -> None:
    model = await build_async_model(family)
    with pytest.warns(ResourceWarning, match=r"the model of .* was not closed: call close\(\)"):
        del model
    await asyncio.to_thread(wait_until, lambda: "close" in notes.steps)


def test_a_model_collected_on_its_own_event_loop_is_closed(notes: Notes) -> None:
    @register_model("tg-cycle")
    class Cycle:
        def load(self, cfg: Any) -> None: ...
        async def infer(self, inputs: Any) -> None:
            inputs["let go"]()
            gc.collect()

        async def close(self) -> None:
            notes.add("close")

    kept: list[Any] = [build_model("tg-cycle")]
    infer: Callable[..., Any] = kept[0].instance.infer
    driver = kept[0]._driver
    with pytest.warns(ResourceWarning), contextlib.suppress(ServerError):
        driver.call(infer, {"let go": kept.clear})
    wait_until(lambda: "close" in notes.steps)


def test_a_failed_start_leaves_no_thread() -> None:
    families = dict(MODEL_REGISTRY._registered)

    @register_model("tg-unable")
    class Unable:
        async def load(self, cfg: Any) -> None:
            raise ValueError("no weights")

        async def infer(self, inputs: Any) -> None: ...

    try:
        with pytest.raises(ValueError, match="no weights"):
            build_model("tg-unable")
        assert not left_threads()
        with pytest.raises(ValueError, match="no weights"):
            asyncio.run(build_async_model("tg-unable"))
        wait_until(lambda: not left_threads())
    finally:
        MODEL_REGISTRY._registered.clear()
        MODEL_REGISTRY._registered.update(families)


def test_echo_both_ways() -> None:
    inputs = {"text": "a b", "max_new_tokens": 3}
    expected = {"text": " a b a", "finish_reason": "length"}
    with build_model("echo") as model:
        assert model.infer(inputs) == expected
        assert "".join(item["text"] for item in model.stream(inputs)) == expected["text"]
        stream = model.stream({"text": "a", "max_new_tokens": 1000})
        next(stream)
        assert model.ongoing == 1
        stream.close()
        assert model.ongoing == 0

    async def use() -> None:
        async with await build_async_model("echo") as model:
            answers = await asyncio.gather(*[model.infer(inputs) for _ in range(5)])
            assert answers == [expected] * 5

    asyncio.run(use())
