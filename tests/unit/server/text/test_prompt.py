"""Several answers to one prompt cost one rendering and one count of its tokens."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import httpx

from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app
from truthgpt_serve.server.text.prompt import SharedPrompt


class Counting(Base):
    """Counts what is asked of its tokenizer."""

    max_model_len = 100

    class tokenizer:
        rendered: ClassVar[list[Any]] = []
        encoded: ClassVar[list[str]] = []

        @classmethod
        def apply_chat_template(cls, messages: Any, **_: Any) -> str:
            cls.rendered.append(messages)
            return f"<{messages[-1]['content']}>"

        @classmethod
        def encode(cls, text: str) -> list[int]:
            cls.encoded.append(text)
            return [0] * len(text)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "a"}


def test_answers_share_a_prompt() -> None:
    with (
        serve_asgi(create_app(spec_of(Counting), {}, name="sample"), lifespan="on") as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        counts = []
        for n in (1, 1, 4):  # with the first, the template is asked once what it takes
            Counting.tokenizer.rendered.clear()
            Counting.tokenizer.encoded.clear()
            messages = [{"role": "user", "content": "Hi"}]
            body = {"model": "sample", "messages": messages, "n": n}
            answer = client.post("/v1/chat/completions", json=body).json()
            assert len(answer["choices"]) == n
            assert answer["usage"]["prompt_tokens"] == 4
            encoded = Counting.tokenizer.encoded
            counts.append((len(Counting.tokenizer.rendered), encoded.count("<Hi>")))
    assert counts[1] == counts[2]


def test_what_fails_is_tried_again() -> None:
    shared = SharedPrompt()
    failures = [ValueError("a"), None]

    def compute() -> int:
        if (error := failures.pop(0)) is not None:
            raise error
        return threading.get_ident()

    with ThreadPoolExecutor(4) as pool:
        found = [future.exception() or future.result() for future in
                 [pool.submit(shared.once, "a", compute) for _ in range(8)]]  # fmt: skip
    assert sum(isinstance(one, ValueError) for one in found) == 1
    assert len({one for one in found if isinstance(one, int)}) == 1
    assert failures == []
