"""The image family's class: the model contract around one image engine.

Its asynchronous methods never block: input images are converted in threads of its own, and images
are made on the engine's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

from truthgpt_serve.channel import Channel, ReaderGoneError
from truthgpt_serve.errors import ServerError, UnavailableError
from truthgpt_serve.queue_full import queue_full
from truthgpt_serve.usage.counted import add_images

T = TypeVar("T")

NUM_THREADS = 2
"""Threads that convert images: the libraries they call release the interpreter's lock."""
QUEUE_FACTOR = 12
"""Images that may run and wait for each request that may: one request asks for up to ten."""


class DiffusersModel:
    """One image model on a stock Diffusers pipeline, its requests batched at every denoising step.

    Attributes:
        operations: What the image routes may ask for; a pipeline may still refuse one.
        default_steps: None, for requests without `steps` are this class's own affair.
        accepts_seed: A request without a seed gets a drawn one, so that its images differ.
        ongoing: Images that are being made or wait.
    """

    operations = ("generation", "edit", "variation")
    default_steps = None
    accepts_seed = True

    def __init__(self) -> None:
        self.ongoing = 0
        self._engine: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._max_ongoing = 0

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the weights and starts the engine.

        Raises:
            ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
        """
        from deployments.hf_diffusers.config import default_ongoing_requests
        from deployments.hf_diffusers.engine import ImageEngine

        ongoing = cfg["serving"]["max_ongoing_requests"] or default_ongoing_requests(cfg)
        self._max_ongoing = QUEUE_FACTOR * int(ongoing)
        self._engine = ImageEngine(cfg)
        self.operations = self._engine.operations
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="images")

    @property
    def acceleration(self) -> dict[str, Any]:
        """The model's backend, for its card; empty before `load`."""
        return {} if self._engine is None else dict(self._engine.acceleration)

    def expected_work(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Returns about how many steps and pixels an image of these inputs takes.

        Raises:
            RequestError: An input is wrong.
        """
        if self._engine is None:
            raise UnavailableError("the model is not loaded: call `load(cfg)` first")
        found: tuple[int, int] = self._engine.expected_work(inputs)
        return found

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Makes one image.

        Args:
            inputs: `prompt` and what else docs/images.md lists.

        Returns:
            `image`, a PIL image; `seed`; `num_steps`, the denoising steps that were made; `usage`
            with `input_tokens` and `output_tokens`.

        Raises:
            RequestError: An input is wrong.
            OverloadedError: The queue is full.
            ServerError: The image could not be made.
        """
        async with aclosing(self._make(inputs, progress=False)) as items:
            async for item in items:
                if "image" in item:
                    return item
        raise ServerError("the engine ended without an image")

    async def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the progress of one image and then what `infer` returns; errors as there.

        Yields:
            `{"queue_position"}` while it waits, `{"step", "num_steps"}`, and with `partial_images`
            `{"partial_image", "index"}`. A slow reader misses steps, never images.
        """
        async with aclosing(self._make(inputs, progress=True)) as items:
            async for item in items:
                yield item

    async def _make(
        self, inputs: dict[str, Any], *, progress: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        engine = self._engine
        if engine is None:
            raise UnavailableError("the model is not loaded: call `load(cfg)` first")
        if self.ongoing >= self._max_ongoing:
            raise queue_full("this model", self.ongoing)
        self.ongoing += 1
        events = Channel(merge=_merge)
        job: Any = None
        try:
            call = await self._in_thread(partial(engine.plan, inputs))
            job = engine.submit(call, partial(_put, events) if progress else None)
            job.add_done_callback(lambda _: events.finish())
            while items := await events.get():
                for item in items:
                    if isinstance(item, dict):
                        yield item
                    else:
                        yield await self._in_thread(partial(engine.convert, item))
            yield await self._in_thread(partial(engine.finish, call, job))
        finally:
            self.ongoing -= 1
            if job is not None and not job.done():
                engine.cancel(job)
                if not progress:  # else whoever read it knows how far it came
                    add_images(0, engine.megapixel_steps(call, job))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        if self._pool is None:
            raise UnavailableError("the model is closed")
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    def metrics(self) -> str:
        """Returns the engine's counts in Prometheus' text format."""
        engine = self._engine
        return str(engine.metrics()) if engine is not None else ""

    def check_health(self) -> None:
        """Raises when the engine's thread is dead."""
        if self._engine is not None:
            self._engine.check_health()

    def close(self) -> None:
        """Cancels what runs and frees the engine; safe to call twice."""
        engine, self._engine = self._engine, None
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        if engine is not None:
            engine.close()


def _put(events: Channel, event: Any) -> None:
    """Takes an event in the engine's thread: progress as the stream's item, an image as it is."""
    if hasattr(event, "image"):
        item = event
    elif event.queue_position:
        item = {"queue_position": event.queue_position}
    else:
        item = {"step": event.step, "num_steps": event.num_steps}
    with suppress(ReaderGoneError):
        events.put(item)


def _merge(last: Any, item: Any) -> Any:
    """Has newer progress take the place of older that is still unread."""
    return item if isinstance(item, dict) and isinstance(last, dict) else None
