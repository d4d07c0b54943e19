"""A text that is too long: one wording and one code for every class that has a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.server import create_app


class Words:
    """Counts words; each text begins with one special token."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
        return ["<s>"] * add_special_tokens + text.split()


class Short(Base):
    tokenizer = Words()
    max_model_len = 8

    def infer(self, inputs: dict[str, Any]) -> Any:
        self.events.append(inputs)
        if inputs["text"] == "own":
            raise ContextLengthError(5, 9, param="prompt")
        return {"text": "yes"}


class ShortVectors(Base):
    tokenizer = Words()
    max_model_len = 4

    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"embedding": [1.0]}


@contextmanager
def serving(cls: type, task: str) -> Iterator[openai.OpenAI]:
    app = create_app(spec_of(cls), {"task": task}, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


def check(error: openai.BadRequestError, limit: int, num_tokens: int, param: str) -> None:
    assert (error.code, error.param) == ("context_length_exceeded", param)
    body: Any = error.body
    assert body["message"].startswith(
        f"This model's maximum context length is {limit} tokens. "
        f"However, you requested {num_tokens} tokens"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_text(stream: bool) -> None:
    with serving(Short, "text-generation") as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="sample", prompt="a b c d e f g", stream=stream)
        check(caught.value, 8, 9, "prompt")  # 7 words, 1 special token, 1 of the answer
        messages: Any = [{"role": "user", "content": "a b c d e f g"}]
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="sample", messages=messages, stream=stream)
        check(caught.value, 8, 10, "messages")  # `user:` too
        assert [event for event in Short.last.events if isinstance(event, dict)] == []
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="sample", prompt="own")
        check(caught.value, 5, 9, "prompt")


def test_what_fits_is_told_how_much_room_is_left() -> None:
    with serving(Short, "text-generation") as client:
        client.completions.create(model="sample", prompt="a b c", max_tokens=100)
        assert Short.last.events[-1]["max_new_tokens"] == 4
        client.completions.create(model="sample", prompt="a b c", max_tokens=2)
        assert Short.last.events[-1]["max_new_tokens"] == 2


def test_vectors() -> None:
    with serving(ShortVectors, "embedding") as client:
        assert client.embeddings.create(model="sample", input=["a b c"]).data
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="sample", input=["a", "a b c d"])
        check(caught.value, 4, 5, "input")
        more: dict[str, Any] = {"truncate_prompt_tokens": 4}
        assert client.embeddings.create(model="sample", input="a b c d", extra_body=more).data
