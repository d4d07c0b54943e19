"""Chats with calls in templates that have no place for all of them, with a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.text.tokenizer import Tokenizer

TOOLS = "{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}"
CALL = """{{- '{"name": "' + call.function.name + '", "parameters": ' }}
{{- call.function.arguments | tojson + '}' }}"""
LLAMA = f"""{TOOLS}{{%- for message in messages %}}{{{{- '<|' + message.role + '|>' }}}}
{{%- if message.tool_calls %}}
{{%- if message.tool_calls | length != 1 %}}{{{{- raise_exception('single calls') }}}}{{%- endif %}}
{{%- set call = message.tool_calls[0] %}}{CALL}
{{%- else %}}{{{{- message.content }}}}{{%- endif %}}{{%- endfor %}}"""
"""Writes calls or a text, as Llama 3's does."""
PLANNED = LLAMA.replace(CALL, "{{- 'PLAN ' + (message.tool_plan or '') }}" + CALL)
SILENT = (
    TOOLS
    + "{{- 'List of tools: [' }}"
    + """{%- for message in messages %}
{{- '<|' + message.role + '|>' + message.content }}{%- endfor %}"""
)
"""Has no place for calls, as LFM2's does not."""
BROKEN = "{%- for message in messages %}{{- message.content + 1 }}{%- endfor %}"
TOOL: Any = {
    "type": "function",
    "function": {"name": "add", "description": "", "parameters": {"type": "object"}},
}


def call(number: int) -> dict[str, Any]:
    function = {"name": "add", "arguments": f'{{"a": {number}}}'}
    return {"id": f"c{number}", "type": "function", "function": function}


def result(number: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"c{number}", "content": f"r{number}"}


ASK: dict[str, Any] = {"role": "user", "content": "q"}
ONE = [ASK, {"role": "assistant", "content": "I add.", "tool_calls": [call(1)]}, result(1)]
TWO = [
    ASK,
    {"role": "assistant", "content": "I add.", "tool_calls": [call(1), call(2)]},
    result(2),
    result(1),
    {"role": "user", "content": "so?"},
]


def written(number: int) -> str:
    return f'<|assistant|>{{"name": "add", "parameters": {{"a": {number}}}}}'


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = make_tiny_llama(tmp_path_factory.mktemp("text"))
    return transformers.AutoTokenizer.from_pretrained(folder)


def render(words: Any, template: str, chat: list[dict[str, Any]]) -> str:
    words.chat_template = template
    prompt = Tokenizer(words).render(chat, [TOOL])
    return prompt[prompt.index("<|user|>") :]


def test_a_text_before_a_call_has_a_message_of_its_own(words: Any) -> None:
    assert render(words, LLAMA, ONE) == f"<|user|>q<|assistant|>I add.{written(1)}<|tool|>r1"


def test_a_text_before_a_call_is_a_plan_where_there_is_one(words: Any) -> None:
    prompt = render(words, PLANNED, ONE)
    assert prompt == f"<|user|>q{written(1).replace('>{', '>PLAN I add.{')}<|tool|>r1"


def test_each_call_has_a_message_and_its_result_behind_it(words: Any) -> None:
    prompt = render(words, LLAMA, TWO)
    first, second = f"{written(1)}<|tool|>r1", f"{written(2)}<|tool|>r2"
    assert prompt == f"<|user|>q<|assistant|>I add.{first}{second}<|user|>so?"


def test_results_without_ids_stay_in_their_order(words: Any) -> None:
    plain = [{"role": "tool", "content": f"r{number}"} for number in (1, 2, 3)]
    prompt = render(words, LLAMA, [*TWO[:2], *plain])
    first, second = f"{written(1)}<|tool|>r1", f"{written(2)}<|tool|>r2"
    assert prompt == f"<|user|>q<|assistant|>I add.{first}{second}<|tool|>r3"


def test_calls_without_a_place_are_told_in_the_models_own_form(words: Any) -> None:
    prompt = render(words, SILENT, ONE)
    called = "I add.\n<|tool_call_start|>[add(a=1)]<|tool_call_end|>"
    told = "<|user|><tool_response>\nr1\n</tool_response>"
    assert prompt == f"<|user|>q<|assistant|>{called}{told}"


def test_what_a_template_refuses_in_every_shape(words: Any) -> None:
    refusing = LLAMA.replace("message.tool_calls | length != 1", "true").replace(
        "{{- message.content }}", "{{- raise_exception('no') }}"
    )
    with pytest.raises(RequestError, match="the messages: no"):
        render(words, refusing, TWO)
    words.chat_template = BROKEN
    with pytest.raises(RequestError, match="the chat template refuses the messages: can only conc"):
        Tokenizer(words).render([ASK])
