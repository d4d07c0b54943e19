"""Several answers to one request, made at the same time: `n` to each of its prompts."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from truthgpt_serve.server.execution.codec import Emit
from truthgpt_serve.server.execution.gather import CallSlots, gather
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.text.codec import Part, TextCodec
from truthgpt_serve.server.text.response import AnswerFormat, Usage


class ChoiceRunner:
    """Runs the codecs of requests with several answers.

    Args:
        instance: The model; started before the first request.
    """

    def __init__(self, instance: ModelInstance) -> None:
        self._instance = instance
        self._slots = CallSlots(lambda: instance.max_ongoing)

    async def answer(
        self, codecs: list[TextCodec], answer_format: AnswerFormat, num_answers: int
    ) -> bytes:
        """Returns the body of an answer.

        Args:
            codecs: One for each choice, those of one prompt after the other.
            answer_format: Encodes the body.
            num_answers: Choices for each prompt.
        """
        choices = await gather(
            [
                self._slots.run(index, partial(self._instance.run, codec))
                for index, codec in enumerate(codecs)
            ]
        )
        return answer_format.body(choices, add_usage(codecs, num_answers))

    async def stream(
        self,
        codecs: list[TextCodec],
        answer_format: AnswerFormat,
        num_answers: int,
        emit: Emit,
    ) -> None:
        """Emits the chunks of all choices as they come, and the end; arguments as above."""
        lock = asyncio.Lock()

        async def emit_one(chunk: Any) -> None:
            async with lock:  # the head of the answer goes out with the first
                await emit(chunk)

        await gather(
            [
                self._slots.run(index, partial(self._instance.stream, codec, emit_one))
                for index, codec in enumerate(codecs)
            ]
        )
        await emit(answer_format.end(add_usage(codecs, num_answers)))


def parts_of(num_prompts: int, num_answers: int) -> list[Part]:
    """Returns the parts of a request, those of one prompt after the other."""
    alone = num_prompts * num_answers == 1
    return [
        Part(prompt, number, prompt * num_answers + number, alone)
        for prompt in range(num_prompts)
        for number in range(num_answers)
    ]


def add_usage(codecs: list[TextCodec], num_answers: int) -> Usage | None:
    """Returns the token counts of all choices; each prompt counts once."""
    counts = [codec.usage for codec in codecs]
    known = [usage for usage in counts if usage is not None]
    if len(known) < len(counts):
        return None
    prompt = sum(usage["prompt_tokens"] for usage in known[::num_answers])
    completion = sum(usage["completion_tokens"] for usage in known)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
