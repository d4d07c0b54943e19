"""Chat templates get contents in the form that they read; see test_messages.py for the rest."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers import AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.server.text.tokenizer import Tokenizer

PARTS = (
    "{% for message in messages %}<{{ message.role }}>{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
)
"""As those of SmolVLM: of a text it prints nothing, since characters have no type."""
STRICT = (
    "{% for message in messages %}<{{ message.role }}>"
    "{{ message['content'][0]['text'] + '' }}\n{% endfor %}"
)
"""As that of LLaVA-NeXT: it fails on a text."""
PLAIN = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
CHAT: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who is Ada?"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(make_tiny_llama(tmp_path_factory.mktemp("llama")))


@pytest.mark.parametrize("template", [PARTS, STRICT, PLAIN])
def test_contents_come_out_of_templates_that_read_parts_alone(
    tokenizer: Any, template: str
) -> None:
    tokenizer.chat_template = template
    found = Tokenizer(tokenizer).render(CHAT)
    assert found == "<system>Be brief.\n<user>Who is Ada?\n"


@pytest.mark.parametrize("template", [PARTS, STRICT, PLAIN])
def test_so_does_an_answer_that_goes_on(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    chat = [*CHAT, {"role": "assistant", "content": "Ada is"}]
    found = Tokenizer(tokenizer).render(chat, goes_on=True)
    assert found == "<system>Be brief.\n<user>Who is Ada?\n<assistant>Ada is"


def test_a_chat_of_thousands_of_calls_takes_no_square_of_time(tokenizer: Any) -> None:
    def seconds(number: int) -> float:
        function = {"name": "f", "arguments": '{"a": 1}'}
        calls = [{"id": f"c{i}", "type": "function", "function": function} for i in range(100)]
        turn = {"role": "assistant", "content": "x", "tool_calls": calls}
        started = time.thread_time()
        Tokenizer(tokenizer).render([CHAT[1], *[turn] * number])
        return time.thread_time() - started

    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}"
        "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    seconds(1)
    assert seconds(160) < 32 * seconds(10) + 0.5
