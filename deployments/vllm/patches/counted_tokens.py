"""Counts the tokens of each request at vLLM's client, where every route's requests pass.

So they are exact for all routes of vLLM, whatever their answers say, and also where a client left.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vllm.sampling_params import RequestOutputKind

from truthgpt_serve.usage.counted import Usage, current_usage


def count_tokens(client: Any) -> None:
    """Has an engine client add what it does to the usage of the request that asks for it."""
    generate, encode = client.generate, client.encode

    def counted_generate(
        prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = generate(prompt, sampling_params, *args, **kwargs)
        usage = current_usage()
        if usage is None:
            return outputs
        is_delta = sampling_params.output_kind == RequestOutputKind.DELTA
        return _count_generated(outputs, usage, is_delta=is_delta)

    def counted_encode(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        outputs: AsyncGenerator[Any, None] = encode(*args, **kwargs)
        usage = current_usage()
        return outputs if usage is None else _count_read(outputs, usage)

    client.generate, client.encode = counted_generate, counted_encode


async def _count_generated(
    outputs: AsyncGenerator[Any, None], usage: Usage, *, is_delta: bool
) -> AsyncGenerator[Any, None]:
    has_prompt = False
    counts: dict[int, int] = {}
    async with aclosing(outputs):
        async for output in outputs:
            if not has_prompt:
                has_prompt = True
                usage.prompt_tokens += len(output.prompt_token_ids or ())
                usage.cached_tokens += output.num_cached_tokens or 0
            for answer in output.outputs:
                number, before = len(answer.token_ids), counts.get(answer.index, 0)
                counts[answer.index] = before + number if is_delta else number
                usage.completion_tokens += number if is_delta else number - before
            yield output


async def _count_read(
    outputs: AsyncGenerator[Any, None], usage: Usage
) -> AsyncGenerator[Any, None]:
    async with aclosing(outputs):
        async for output in outputs:
            if output.finished:
                usage.prompt_tokens += len(output.prompt_token_ids or ())
                usage.cached_tokens += output.num_cached_tokens or 0
            yield output
