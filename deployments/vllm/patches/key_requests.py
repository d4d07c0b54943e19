"""What vLLM's client does for a request of a key, whatever route of vLLM it came by.

It counts the tokens exactly, also where a client left, and carries the key's priority and salt into
the engine, where no client can set them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from vllm.sampling_params import RequestOutputKind

from truthgpt_serve.usage.counted import Usage, current_usage

_SEPARATOR = "\0"
"""Between the key's name, which cannot have it, and a salt of the client's own."""
_collectors: ContextVar[list[Any] | None] = ContextVar("vllm_collectors", default=None)
"""Gets the collectors of the request that is being added: an output that nobody took is there."""


def mark_requests(client: Any) -> None:
    """Has an engine client look whose request it gets, and add what it does to its usage.

    Args:
        client: vLLM's; three of its methods are replaced.
    """
    generate, encode, add_request = client.generate, client.encode, client.add_request
    has_priorities = client.vllm_config.scheduler_config.policy == "priority"

    def marked_generate(
        prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        usage = current_usage()
        if usage is None:
            outputs: AsyncGenerator[Any, None] = generate(prompt, sampling_params, *args, **kwargs)
            return outputs
        if has_priorities and usage.priority is not None:
            kwargs["priority"] = -usage.priority  # vLLM begins with the lowest
        outputs = generate(_salted(prompt, usage.cache_salt), sampling_params, *args, **kwargs)
        is_delta = sampling_params.output_kind == RequestOutputKind.DELTA
        return _counted(outputs, _Generated(usage, is_delta=is_delta).add)

    def marked_encode(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        usage = current_usage()
        if usage is None:
            outputs: AsyncGenerator[Any, None] = encode(prompt, *args, **kwargs)
            return outputs
        if has_priorities and usage.priority is not None:
            kwargs["priority"] = -usage.priority
        outputs = encode(_salted(prompt, usage.cache_salt), *args, **kwargs)
        return _counted(outputs, partial(_add_read, usage))

    async def noted_add_request(*args: Any, **kwargs: Any) -> Any:
        collector = await add_request(*args, **kwargs)
        if (collectors := _collectors.get()) is not None:
            collectors.append(collector)
        return collector

    client.generate, client.encode = marked_generate, marked_encode
    client.add_request = noted_add_request


def _salted(prompt: Any, salt: str) -> Any:
    """Returns a prompt whose prefixes are found by requests with the same salt only."""
    if not salt or not isinstance(prompt, Mapping):
        return prompt
    return {**prompt, "cache_salt": f"{salt}{_SEPARATOR}{prompt.get('cache_salt') or ''}"}


async def _counted(
    outputs: AsyncGenerator[Any, None], add: Callable[[Any], None]
) -> AsyncGenerator[Any, None]:
    """Yields the outputs of one request, and adds them to what it used.

    Of a request that ends early, as its client left, vLLM leaves a last output in its collector:
    for an answer that is not streamed, all of its tokens.
    """
    collectors: list[Any] = []
    is_over = False
    try:
        async with aclosing(outputs):
            output = await _first(outputs, collectors)
            while output is not None:
                is_over = output.finished
                add(output)
                yield output
                output = await anext(outputs, None)
    finally:
        for collector in [] if is_over else collectors:
            with suppress(Exception):  # the engine's, which the request itself has got
                if (rest := collector.get_nowait()) is not None:
                    add(rest)


async def _first(outputs: AsyncGenerator[Any, None], collectors: list[Any]) -> Any:
    """Returns the first output, or None; notes the collector of the request, which begins here."""
    token = _collectors.set(collectors)
    try:
        return await anext(outputs, None)
    finally:
        _collectors.reset(token)


class _Generated:
    """What the answers of one request used so far.

    Args:
        usage: Gets it.
        is_delta: Whether an output has the tokens since the one before, not all of them.
    """

    def __init__(self, usage: Usage, *, is_delta: bool) -> None:
        self._usage = usage
        self._is_delta = is_delta
        self._has_prompt = False
        self._counts: dict[int, int] = {}

    def add(self, output: Any) -> None:
        """Adds one output."""
        usage, counts = self._usage, self._counts
        if not self._has_prompt:
            self._has_prompt = True
            _add_prompt(usage, output)
        for answer in output.outputs:
            number, before = len(answer.token_ids), counts.get(answer.index, 0)
            counts[answer.index] = before + number if self._is_delta else number
            usage.completion_tokens += number if self._is_delta else number - before


def _add_read(usage: Usage, output: Any) -> None:
    """Adds what a request that generates nothing used."""
    if output.finished:
        _add_prompt(usage, output)


def _add_prompt(usage: Usage, output: Any) -> None:
    usage.prompt_tokens += len(output.prompt_token_ids or ())
    usage.cached_tokens += output.num_cached_tokens or 0
