"""Requests of keys are marked and counted at the client, whatever route they came by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.outputs import CompletionOutput, PoolingOutput, PoolingRequestOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from deployments.vllm.patches.key_requests import mark_requests
from truthgpt_serve.usage.counted import Usage, counting

PROMPT = [1, 2, 3, 4, 5]


class Client:
    """Gives vLLM's own outputs, as its client does: six tokens each of two answers."""

    def __init__(self, policy: str = "fcfs") -> None:
        self.closed = False
        self.vllm_config = SimpleNamespace(scheduler_config=SimpleNamespace(policy=policy))
        self.got: list[tuple[Any, int]] = []

    async def add_request(self, request_id: str, params: SamplingParams) -> RequestOutputCollector:
        return RequestOutputCollector(params.output_kind, request_id)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, *, priority: int = 0
    ) -> AsyncGenerator[RequestOutput, None]:
        is_delta = sampling_params.output_kind == RequestOutputKind.DELTA
        self.got.append((prompt, priority))
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
    mark_requests(client)
    usage = Usage()
    with counting(usage):
        outputs = client.generate("p", SamplingParams(n=2, output_kind=kind), "r")
    assert len([output async for output in outputs]) == 3
    assert usage == Usage(prompt_tokens=5, cached_tokens=4, completion_tokens=12)


async def test_a_client_that_leaves_pays_for_what_was_made() -> None:
    client = Client()
    mark_requests(client)
    usage = Usage()
    with counting(usage):
        outputs = client.generate("p", SamplingParams(output_kind=RequestOutputKind.DELTA), "r")
    async with aclosing(outputs):
        async for _ in outputs:
            break
    assert client.closed
    assert usage.completion_tokens == 4


class Silent(Client):
    """Has made some tokens of an answer that is not streamed, and gives them when it is aborted."""

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, *, priority: int = 0
    ) -> AsyncGenerator[RequestOutput, None]:
        collector = await self.add_request(request_id, sampling_params)
        try:
            yield await collector.get()
        finally:
            answers = [CompletionOutput(index, "", [7, 8, 9], None, None) for index in (0, 1)]
            collector.put(RequestOutput(request_id, "", PROMPT, None, answers, True))


@pytest.mark.parametrize("kind", RequestOutputKind)
async def test_a_client_that_leaves_before_the_first_output_pays_too(
    kind: RequestOutputKind,
) -> None:
    client = Silent()
    mark_requests(client)
    usage = Usage()

    async def ask() -> None:
        async for _ in client.generate("p", SamplingParams(n=2, output_kind=kind), "r"):
            raise AssertionError

    with counting(usage):
        task = asyncio.create_task(ask())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert usage == Usage(prompt_tokens=5, completion_tokens=6)


async def test_pooling() -> None:
    client = Client()
    mark_requests(client)
    usage = Usage()
    with counting(usage):
        assert len([output async for output in client.encode("p")]) == 1
    assert usage == Usage(prompt_tokens=5)
    assert len([output async for output in client.encode("p")]) == 1
    assert usage == Usage(prompt_tokens=5)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
async def test_priority_and_salt_are_those_of_the_key(policy: str) -> None:
    client = Client(policy)
    mark_requests(client)
    prompts: list[Any] = [{"prompt_token_ids": [1]}, {"prompt_token_ids": [1], "cache_salt": "x"}]
    with counting(Usage(priority=7, cache_salt="team")):
        for prompt in prompts:
            outputs = client.generate(prompt, SamplingParams(), "r", priority=-100)
            assert [output async for output in outputs]
    asked = -7 if policy == "priority" else -100  # which that scheduler does not heed
    assert client.got == [
        ({"prompt_token_ids": [1], "cache_salt": "team\0"}, asked),
        ({"prompt_token_ids": [1], "cache_salt": "team\0x"}, asked),
    ]
    with counting(Usage()):
        assert [output async for output in client.generate(prompts[1], SamplingParams(), "r")]
    assert client.got[-1] == (prompts[1], 0)


def test_vllms_client_has_the_methods() -> None:
    assert AsyncLLM.add_request.__annotations__["return"] is RequestOutputCollector
    for name, parameter in (("generate", "sampling_params"), ("encode", "pooling_params")):
        assert parameter in getattr(AsyncLLM, name).__code__.co_varnames[:3]
