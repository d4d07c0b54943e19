"""Classes as users write them, for the tests of the server; some of them break the contract."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from truthgpt_serve.cancellation import is_cancelled, raise_if_cancelled
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import UnsupportedError


def spec_of(cls: type) -> FamilySpec:
    return FamilySpec(name="sample", class_path=f"sample:{cls.__name__}", model_class=cls)


def wait_until(condition: Callable[[], object], limit_s: float = 60) -> float:
    """Waits for the condition; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, "the condition never became true"
        time.sleep(0.002)
    return time.monotonic() - start


class Base:
    """What the tests look at; `last` is the instance that was made last."""

    last: Any = None

    def __init__(self) -> None:
        type(self).last = self
        self.events: list[Any] = []
        self.release = threading.Event()

    def load(self, cfg: dict[str, Any]) -> None:
        self.events.append(("load", threading.get_ident()))


class Upper(Base):
    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(("infer", inputs))
        return {"text": inputs["text"].upper()}


class Continuation(Base):
    """Returns the prompt with its continuation, as base models do."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["text"] + " and so on. END never seen"}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        text = self.infer(inputs)["text"]
        for at in range(0, len(text), 3):
            yield {"text": text[at : at + 3]}


class Blocking(Base):
    """Blocks its thread; `release` ends it."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(("enter", inputs["text"], threading.get_ident()))
        self.release.wait(float(inputs.get("seconds", 60)))
        self.events.append(("leave", inputs["text"]))
        return {"text": "done"}


class Patient(Base):
    """Blocks its thread until its clients have left, which it asks."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append("enter")
        self._wait()
        return {"text": "done"}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"text": "first"}
        self.events.append("enter")
        self._wait()
        yield {"text": "last"}

    def _wait(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if is_cancelled():
                self.events.append("told")
                return
            time.sleep(0.002)


class PatientBatch(Base):
    """The same for a batch."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.events.append(len(batch))
        until = time.monotonic() + 300
        while not self.release.is_set() and time.monotonic() < until:
            raise_if_cancelled()
            time.sleep(0.002)
        return [{"text": "done"} for _ in batch]


class BlockingAsync(Base):
    """Wrongly blocks in asynchronous code; `release` ends it."""

    block_s = 1.0

    async def load(self, cfg: dict[str, Any]) -> None:  # type: ignore[override]  # the contract allows async too
        time.sleep(0.01)

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.events.append(("enter", inputs["text"]))
        self.release.wait(self.block_s)
        self.events.append(("leave", inputs["text"]))
        return {"text": "done"}


class Ticks(Base):
    """Streams a word every 50 ms, until `release`."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "tick"}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            for number in range(int(inputs.get("max_new_tokens", 10**6))):
                if self.release.wait(0.05):
                    break
                yield {"text": f"{number} "}
                self.events.append(number)
        finally:
            self.events.append("closed")


class AsyncTicks(Ticks):
    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]  # the contract allows async too
        self.events.append("begun")
        try:
            await asyncio.sleep(1000)
        finally:
            self.events.append("closed")
        return {"text": "tick"}

    async def stream(self, inputs: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:  # type: ignore[override]  # the contract allows async too
        try:
            for number in range(int(inputs.get("max_new_tokens", 10**6))):
                await asyncio.sleep(0.05)
                yield {"text": f"{number} "}
                self.events.append(number)
        finally:
            self.events.append("closed")


class ReturnedTicks(Ticks):
    """A plain function that returns an async generator."""

    def stream(self, inputs: dict[str, Any]) -> Any:
        return AsyncTicks.stream(self, inputs)  # type: ignore[arg-type]  # borrowed from a class that is no base


class Flood(Base):
    """Streams as fast as it can, for ever."""

    made = 0

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "x"}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while True:
            self.made += 1
            yield {"text": "x" * 1000}


class Misbehaving(Base):
    """Does what the prompt says."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        actions: dict[str, Callable[[], Any]] = {
            "number": lambda: 7,
            "none": lambda: None,
            "empty": lambda: {},
            "bytes": lambda: {"text": b"x"},
            "reason": lambda: {"text": "x", "finish_reason": "tired"},
            "generator": lambda: (item for item in "ab"),
            "coroutine": self._later,
            "error": lambda: inputs["secret-key"],
            "exit": self._exit,
            "stop": lambda: next(iter(())),
            "refuse": self._refuse,
            "surrogate": lambda: {"text": "a\ud800b"},
        }
        return actions[inputs["text"]]()

    async def _later(self) -> dict[str, str]:
        return {"text": "later"}

    def _exit(self) -> None:
        raise SystemExit(1)

    def _refuse(self) -> None:
        raise UnsupportedError("`seed` cannot be honored", param="seed")

    def stream(self, inputs: dict[str, Any]) -> Any:
        if inputs["text"] == "list":
            return ["a"]
        return self._pieces(inputs["text"])

    def _pieces(self, text: str) -> Iterator[Any]:
        if text == "refuse":
            self._refuse()
        yield {"text": "first "}
        if text == "late error":
            raise KeyError("secret-key")
        yield 3
