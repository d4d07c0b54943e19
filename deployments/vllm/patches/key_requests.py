"""What vLLM's client does for a request of a key, whatever route of vLLM it came by.

It counts the tokens exactly, also where a client left, and carries the key's priority and salt into
the engine, where no client can set them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from vllm.sampling_params import RequestOutputKind

from truthgpt_serve.usage.counted import Usage, current_usage

_SEPARATOR = "\0"
"""Between the key's name, which cannot have it, and a salt of the client's own."""


def mark_requests(client: Any) -> None:
    """Has an engine client look whose request it gets, and add what it does to its usage.

    Args:
        client: vLLM's; two of its methods are replaced.
    """
    generate, encode = client.generate, client.encode
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
        return _count_generated(outputs, usage, is_delta=is_delta)

    def marked_encode(prompt: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        usage = current_usage()
        if usage is None:
            outputs: AsyncGenerator[Any, None] = encode(prompt, *args, **kwargs)
            return outputs
        if has_priorities and usage.priority is not None:
            kwargs["priority"] = -usage.priority
        return _count_read(encode(_salted(prompt, usage.cache_salt), *args, **kwargs), usage)

    client.generate, client.encode = marked_generate, marked_encode


def _salted(prompt: Any, salt: str) -> Any:
    """Returns a prompt whose prefixes are found by requests with the same salt only."""
    if not salt or not isinstance(prompt, Mapping):
        return prompt
    return {**prompt, "cache_salt": f"{salt}{_SEPARATOR}{prompt.get('cache_salt') or ''}"}


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
