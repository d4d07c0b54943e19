"""Tokens are counted at the client, whatever a route reads of its outputs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
import torch
from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from deployments.vllm.patches.counted_tokens import count_tokens
from truthgpt_serve.usage.counted import Usage, counting

PROMPT = [1, 2, 3, 4, 5]


class Client:
    """Gives vLLM's own outputs, as its client does: six tokens each of two answers."""

    def __init__(self) -> None:
        self.closed = False

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        is_delta = sampling_params.output_kind == RequestOutputKind.DELTA
        try:
            for step in (1, 2, 3):
                tokens = [7, 8] if is_delta else [7, 8] * step
                answers = [CompletionOutput(index, "", tokens, None, None) for index in (0, 1)]
                yield RequestOutput(
                    request_id, "", PROMPT, None, answers, step == 3, num_cached_tokens=4
                )
        finally:
            self.closed = True

    async def encode(self, *args: Any) -> AsyncGenerator[Any, None]:
        yield PoolingRequestOutput("r", PoolingOutput(torch.zeros(1)), PROMPT, 0, True)


@pytest.mark.parametrize("kind", RequestOutputKind)
async def test_every_kind_of_output(kind: RequestOutputKind) -> None:
    client = Client()
    count_tokens(client)
    usage = Usage()
    with counting(usage):
        outputs = client.generate("p", SamplingParams(n=2, output_kind=kind), "r")
    assert len([output async for output in outputs]) == 3
    assert usage == Usage(prompt_tokens=5, cached_tokens=4, completion_tokens=12)


async def test_a_client_that_leaves_pays_for_what_was_made() -> None:
    client = Client()
    count_tokens(client)
    usage = Usage()
    with counting(usage):
        outputs = client.generate("p", SamplingParams(output_kind=RequestOutputKind.DELTA), "r")
    async with aclosing(outputs):
        async for _ in outputs:
            break
    assert client.closed
    assert usage.completion_tokens == 4


async def test_pooling() -> None:
    client = Client()
    count_tokens(client)
    usage = Usage()
    with counting(usage):
        assert len([output async for output in client.encode("p")]) == 1
    assert usage == Usage(prompt_tokens=5)
    assert len([output async for output in client.encode("p")]) == 1
    assert usage == Usage(prompt_tokens=5)


def test_vllms_client_has_both_methods() -> None:
    for name, parameter in (("generate", "sampling_params"), ("encode", "pooling_params")):
        assert parameter in getattr(AsyncLLM, name).__code__.co_varnames[:3]
