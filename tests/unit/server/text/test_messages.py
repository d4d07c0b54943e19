"""What the messages of a chat say reaches the model's chat template, or is refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.errors import RequestError, TruthGPTError, UnsupportedError
from truthgpt_serve.server import create_app
from truthgpt_serve.server.text.chat_template import ChatTemplate
from truthgpt_serve.server.text.messages import IGNORED, MAX_ITEMS
from truthgpt_serve.server.text.request import ChatRequest, parse_text

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'tool' %}{{- '<tool_response>' + message.content + '</tool_response>' }}
{%- else %}{{- message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}</tool_call>' }}
{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
"""Takes arguments as an object, as most templates do."""
WANTS_TEXT = CHATML.replace(
    "{{- call.function.arguments | tojson }}", "{{- '```json ' + call.function.arguments }}"
)
"""Puts arguments together with texts: an object is a TypeError."""
PRINTS = CHATML.replace("{{- call.function.arguments | tojson }}", "{{- call.function.arguments }}")
"""Prints arguments: an object comes out as Python writes it."""
PLAIN = """{%- for message in messages %}{{- message.role + ': ' + message.content + '\\n' }}
{%- endfor %}"""
"""Knows no tool calls."""
ROLES_ONLY = """{%- for message in messages %}
{%- if message.role in ('user', 'assistant', 'system') %}
{{- '[' + message.role + ']' + message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- call.function.name + (call.function.arguments | tojson) }}
{%- endfor %}{%- endfor %}"""
"""Leaves messages of tools and developers out."""
NAME_ONLY = CHATML.replace("{{- call.function.arguments | tojson }}", "")
PICKY = "{{- raise_exception('ids have 9 characters') if messages[1].tool_calls else '' }}" + PLAIN
THINKS = """{%- for message in messages %}{%- if message.reasoning_content %}
{{- '<think>' + message.reasoning_content + '</think>' }}{%- endif %}
{{- message.content }}{%- endfor %}"""

ASKS_FOR_NONE = """{%- for message in messages %}
{%- if message['role'] == 'assistant' and message['content'] is none %}
{%- for call in message['tool_calls'] %}
{{- call['function']['name'] + '\\n' + call['function']['arguments'].strip() }}{%- endfor %}
{%- else %}{{- message['content'] }}{%- endif %}{%- endfor %}"""
"""Knows a message of calls by a content that is nothing, and handles arguments as a text."""

CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Kyōto", "days": 2}'},
}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("text"))


@pytest.fixture
def tokenizer(weights: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(weights)


def read_messages(messages: Any) -> list[dict[str, Any]]:
    return parse_text(ChatRequest, {"model": "m", "messages": messages}).messages


def render(tokenizer: Any, template: str, messages: Any = HISTORY) -> str:
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer.apply_chat_template).render(read_messages(messages))


def test_a_chat_of_very_many_parts_is_refused_before_they_are_read() -> None:
    part = {"type": "text", "text": "a"}
    message = {"role": "user", "content": [part] * (MAX_ITEMS - 1)}
    body = {"model": "m", "messages": [message]}
    assert parse_text(ChatRequest, body).messages[0]["content"] == "a" * (MAX_ITEMS - 1)
    for messages in ([message, {"role": "user", "content": "b"}], [message] * 100):
        started = time.thread_time()
        with pytest.raises(RequestError, match=f"more than {MAX_ITEMS}") as found:
            parse_text(ChatRequest, {**body, "messages": messages})
        assert found.value.param == "messages"
        assert time.thread_time() - started < 0.1


def test_tool_calls_reach_a_template_as_objects(tokenizer: Any) -> None:
    text = render(tokenizer, CHATML)
    call = text.partition("<tool_call>")[2].partition("</tool_call>")[0]
    assert json.loads(call) == {
        "name": "get_weather",
        "arguments": {"city": "Kyōto", "days": 2},
    }
    assert "<tool_response>sunny</tool_response>" in text


@pytest.mark.parametrize("template", [WANTS_TEXT, PRINTS, ASKS_FOR_NONE])
def test_tool_calls_reach_a_template_as_texts_where_it_wants_texts(
    tokenizer: Any, template: str
) -> None:
    assert '{"city": "Kyōto", "days": 2}' in render(tokenizer, template)


@pytest.mark.parametrize(
    ("template", "place"),
    [
        (PLAIN, "messages[1].tool_calls[0].function.name"),
        (NAME_ONLY, "messages[1].tool_calls[0].function.arguments"),
        (ROLES_ONLY, "messages[2].content"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(
    tokenizer: Any, template: str, place: str
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        render(tokenizer, template)
    assert caught.value.param == place
    assert place in caught.value.message


def test_a_template_that_refuses_by_itself_is_heard(tokenizer: Any) -> None:
    with pytest.raises(RequestError, match="ids have 9 characters"):
        render(tokenizer, PICKY)


def test_every_one_of_several_calls_is_looked_at(tokenizer: Any) -> None:
    first_only = CHATML.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]")
    second = {**CALL, "function": {"name": "other", "arguments": {}}}
    messages = [HISTORY[0], {**HISTORY[1], "tool_calls": [CALL, second]}, HISTORY[2]]
    assert "other" in render(tokenizer, CHATML, messages)
    text = render(tokenizer, first_only, messages)  # each call has a message of its own there
    assert text.count("other") == 1


def test_the_old_form_of_a_call_is_the_same(tokenizer: Any) -> None:
    old = [
        HISTORY[0],
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    assert render(tokenizer, CHATML, old) == render(tokenizer, CHATML)


def test_arguments_that_are_no_object_stay_what_they_were(tokenizer: Any) -> None:
    for arguments in ('{"city": ', "[1, 2]", "nonsense"):
        call = {**CALL, "function": {"name": "f", "arguments": arguments}}
        messages = [HISTORY[0], {**HISTORY[1], "tool_calls": [call]}, HISTORY[2]]
        text = render(tokenizer, CHATML, messages)
        written = text.partition('"arguments": ')[2].partition("}</tool_call>")[0]
        assert json.loads(written) == arguments
    empties: list[Any] = ["", None, "{}", {}]
    for empty in empties:
        call = {**CALL, "function": {"name": "f", "arguments": empty}}
        messages = [HISTORY[0], {**HISTORY[1], "tool_calls": [call]}, HISTORY[2]]
        assert '"arguments": {}' in render(tokenizer, CHATML, messages)


def test_thoughts_reach_templates_that_know_them(tokenizer: Any) -> None:
    messages = [HISTORY[0], {"role": "assistant", "content": "b", "reasoning_content": "hmm"}]
    assert render(tokenizer, THINKS, messages) == "weather?<think>hmm</think>b"
    assert "hmm" not in render(tokenizer, PLAIN, messages)


def test_the_developer_is_the_system_where_a_template_knows_no_other(tokenizer: Any) -> None:
    messages = [{"role": "developer", "content": "be brief"}, HISTORY[0]]
    assert render(tokenizer, CHATML, messages).startswith("<|im_start|>developer\nbe brief")
    assert render(tokenizer, ROLES_ONLY, messages).startswith("[system]be brief")


def test_a_template_that_fails_of_itself_is_not_taken_for_one_that_leaves_out(
    tokenizer: Any,
) -> None:
    broken = "{{- messages[0].content.nothing.there }}"
    with pytest.raises(RequestError, match="refuses the messages"):
        render(tokenizer, broken, [{"role": "developer", "content": "a"}])


def test_a_refusal_is_what_the_assistant_said(tokenizer: Any) -> None:
    for said in (
        {"content": None, "refusal": "no"},
        {"content": [{"type": "refusal", "refusal": "no"}]},
    ):
        messages = [HISTORY[0], {"role": "assistant", **said}]
        assert render(tokenizer, PLAIN, messages).endswith("assistant: no\n")


def test_what_the_openai_client_gives_back_is_taken(tokenizer: Any) -> None:
    message = openai.types.chat.ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "tool_calls": [CALL], "annotations": []}
    )
    messages = [HISTORY[0], message.model_dump(), HISTORY[2]]
    assert render(tokenizer, CHATML, messages) == render(tokenizer, CHATML)


def assistant(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": "a", **fields}]


WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "audio": (assistant(audio={"id": "x"}), "messages[0].audio"),
    "unknown field": (assistant(prefix=True), "messages[0].prefix"),
    "calls are an object": (assistant(tool_calls={}), "messages[0].tool_calls"),
    "a call is a text": (assistant(tool_calls=["f"]), "messages[0].tool_calls[0]"),
    "a call without a function": (
        assistant(tool_calls=[{"id": "1"}]),
        "messages[0].tool_calls[0].function",
    ),
    "a call without a name": (
        assistant(tool_calls=[{"function": {"arguments": "{}"}}]),
        "messages[0].tool_calls[0].function.name",
    ),
    "arguments are a number": (
        assistant(tool_calls=[{"function": {"name": "f", "arguments": 5}}]),
        "messages[0].tool_calls[0].function.arguments",
    ),
    "a call of another kind": (
        assistant(tool_calls=[{"type": "custom", "custom": {"name": "f"}}]),
        "messages[0].tool_calls[0].type",
    ),
    "an unknown field of a call": (
        assistant(tool_calls=[{**CALL, "result": "x"}]),
        "messages[0].tool_calls[0].result",
    ),
    "too many calls": (assistant(tool_calls=[CALL] * 129), "messages[0].tool_calls"),
    "calls of a user": (
        [{"role": "user", "content": "a", "tool_calls": [CALL]}],
        "messages[0].tool_calls",
    ),
    "an id of a user": (
        [{"role": "user", "content": "a", "tool_call_id": "c1"}],
        "messages[0].tool_call_id",
    ),
    "a refusal of a user": (
        [{"role": "user", "content": "a", "refusal": "no"}],
        "messages[0].refusal",
    ),
    "a name that is a number": (assistant(name=5), "messages[0].name"),
    "thoughts that are a list": (assistant(reasoning=[]), "messages[0].reasoning"),
    "an unknown field of a part": (
        [{"role": "user", "content": [{"type": "text", "text": "a", "lang": "en"}]}],
        "messages[0].content[0].lang",
    ),
}


@pytest.mark.parametrize(("messages", "param"), WRONG.values(), ids=WRONG.keys())
def test_what_a_message_must_not_have(messages: Any, param: str) -> None:
    with pytest.raises(TruthGPTError) as caught:
        read_messages(messages)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("name", IGNORED)
def test_what_says_nothing_to_a_model_is_left_out(name: str) -> None:
    assert read_messages(assistant(**{name: 1})) == [{"role": "assistant", "content": "a"}]


class Plain(Base):
    """Has no tokenizer: chats are lines."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"text": "<" + inputs["text"] + ">"}


class Templated(Plain):
    tokenizer: Any = None


@contextmanager
def serving(cls: type) -> Iterator[httpx.Client]:
    app = create_app(spec_of(cls), {"task": "text-generation"}, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_over_http(tokenizer: Any, stream: bool) -> None:
    body = {"model": "sample", "messages": HISTORY, "stream": stream}
    with serving(Plain) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, "calls and results are told in words"
        said = answer.text.replace("\\", "")
        assert '<tool_call>n{"name":"get_weather"' in said
        assert "<tool_response>nsunny" in said
    tokenizer.chat_template = CHATML
    Templated.tokenizer = tokenizer
    with serving(Templated) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        assert "get_weather" in answer.text
        assert "sunny" in answer.text


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (CHATML, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOnce upon"),
        (PLAIN, "user: Hi\nassistant: Once upon"),
        (None, "user: Hi\nassistant: Once upon"),
        ("{{- messages[0].content + ':' }}", "Hi:Once upon"),
    ],
)
def test_an_answer_that_goes_on(tokenizer: Any, template: str | None, prompt: str) -> None:
    tokenizer.chat_template = template
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]
    found = ChatTemplate(tokenizer.apply_chat_template if template else None).render_open(chat)
    assert found == prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "continue_final_message": True,
                "add_generation_prompt": True,
                "messages": [{"role": "assistant", "content": "a"}],
            },
            "continue_final_message",
        ),
    ],
)
def test_fields_of_the_end_that_contradict(fields: dict[str, Any], param: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    with pytest.raises(TruthGPTError) as caught:
        parse_text(ChatRequest, body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_long_histories_take_no_more_than_a_second_look(tokenizer: Any) -> None:
    messages = HISTORY * 300
    started = time.monotonic()
    render(tokenizer, CHATML, messages)
    assert time.monotonic() - started < 10
