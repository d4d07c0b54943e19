"""Variables of chat templates, from the request to the prompt, on each API."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers
from transformers.utils import chat_template_utils

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app
from truthgpt_serve.server.template_options import known_options, template_options

TEMPLATE = """{%- for tool in tools or [] %}{{- tool.function.name + ';' }}{%- endfor %}
{%- for message in messages %}{{- message.content + ';' }}{%- endfor %}
{{- 'off' if enable_thinking is defined and not enable_thinking else 'on' }}
{{- reasoning_effort or '' }}{{- style or '' }}"""
HI: Any = [{"role": "user", "content": "hi"}]


class Templated(Base):
    """Says its prompt again."""

    repeats_prompt = False

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": inputs["text"]}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = make_tiny_llama(tmp_path_factory.mktemp("text"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    kind = type("Told", (Templated,), {"tokenizer": tokenizer})
    with serve_asgi(create_app(spec_of(kind), {}, name="sample"), lifespan="on") as url:
        yield url


def post(url: str, path: str, **fields: Any) -> Any:
    return httpx.post(f"{url}{path}", json={"model": "sample", **fields}, timeout=60).json()


def said(url: str, **fields: Any) -> str:
    answer = post(url, "/v1/chat/completions", messages=HI, **fields)
    return str(answer["choices"][0]["message"]["content"])


def test_the_template_is_told(url: str) -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    off = {"enable_thinking": False, "style": "!"}
    assert said(url) == "hi;on"
    assert said(url, chat_template_kwargs=off) == "hi;off!"
    assert said(url, chat_template_kwargs=off, tools=[tool]) == "add;hi;off!"
    assert said(url, chat_template_kwargs={"nobody": [1], "knows it": None}) == "hi;on"
    assert said(url, reasoning_effort="high") == "hi;onhigh"
    assert said(url, reasoning_effort="none", chat_template_kwargs={}) == "hi;offnone"
    assert said(url, reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}) == (
        "hi;onnone"
    )
    tokens = post(url, "/tokenize", messages=HI, chat_template_kwargs=off)["tokens"]
    assert post(url, "/detokenize", tokens=tokens)["prompt"].endswith("off!")


def test_other_apis_pass_it(url: str) -> None:
    off: Any = {"chat_template_kwargs": {"enable_thinking": False}}
    answer = post(url, "/v1/responses", input="hi", **off)
    assert answer["output"][0]["content"][0]["text"] == "hi;off"
    answer = post(url, "/v1/responses", input="hi", reasoning={"effort": "none"})
    assert answer["output"][0]["content"][0]["text"] == "hi;offnone"
    answer = post(url, "/v1/messages", messages=HI, max_tokens=9, **off)
    assert answer["content"][0]["text"] == "hi;off"
    count = "/v1/messages/count_tokens"
    assert post(url, count, messages=HI, **off) != post(url, count, messages=HI)


RENDER = [*inspect.signature(chat_template_utils.render_jinja_template).parameters]
APPLY = [*inspect.signature(transformers.PreTrainedTokenizerBase.apply_chat_template).parameters]


@pytest.mark.parametrize(
    "name", sorted({*RENDER, *APPLY, "self", "messages"} - {"kwargs", "processor"})
)
def test_what_the_server_says_itself(url: str, name: str) -> None:
    error = post(url, "/v1/chat/completions", messages=HI, chat_template_kwargs={name: 1})["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "chat_template_kwargs")


@pytest.mark.parametrize("value", [1, "x", [], [1], True])
def test_other_values(url: str, value: Any) -> None:
    for path, field in (("chat/completions", "chat_template_kwargs"), ("responses", "reasoning")):
        fields: Any = {"messages": HI, "input": "hi", field: value}
        assert post(url, f"/v1/{path}", **fields)["error"]["param"] == field
    error = post(url, "/v1/chat/completions", messages=HI, reasoning_effort=value)["error"]
    assert error["param"] == "reasoning_effort"


@pytest.mark.parametrize("name", ["raise_exception", "strftime_now", "bos_token", "range", "loop"])
def test_a_template_that_fails_by_a_variable_is_a_fault_of_the_request(url: str, name: str) -> None:
    path = f"{url}/v1/chat/completions"
    body = {"model": "sample", "messages": HI, "chat_template_kwargs": {name: {"a": 1}}}
    assert httpx.post(path, json=body).status_code in (200, 400)


def test_what_a_tokenizer_takes() -> None:
    options = template_options({"a": 1}, "low")
    assert options == {"a": 1, "reasoning_effort": "low", "enable_thinking": True, "thinking": True}
    assert template_options(None, None) == {}

    def one(messages: Any, a: int = 0) -> str:
        return str(a)

    def more(messages: Any, **others: Any) -> str:
        return str(others)

    assert known_options(one, options) == {"a": 1}
    assert known_options(more, options) == options
    assert known_options(3, options) == {}
