"""Thoughts are switched by whatever variable a template reads, over the APIs that say how."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app
from truthgpt_serve.server.thinking_switch import ThinkingSwitch, Wish, switched

CHAT = "{%- for message in messages %}{{- message.content + ';' }}{%- endfor %}"
TEMPLATES = {
    "Qwen3": "{{- 'off' if enable_thinking is defined and not enable_thinking else 'on' }}",
    "DeepSeek-V3.1": "{{- 'on' if thinking is defined and thinking else 'off' }}",
    "Kimi-K2.5": "{{- 'off' if thinking is defined and not thinking else 'on' }}",
    "Mistral-Small-4": """{%- set effort = reasoning_effort | default('none') %}
{%- if effort not in ['none', 'high'] %}{{- raise_exception('no such effort') }}{%- endif %}
{{- 'off' if effort == 'none' else 'on' }}""",
    "DeepSeek-R1": "{{- 'on' }}",
    "gpt-oss": "{{- 'on' }}{{- ':' + reasoning_effort if reasoning_effort else '' }}",
    "GLM-5.3": "{{- 'on' if reasoning_effort in ['low', 'high'] else 'on:max' }}",
}
ENABLED: Any = {"type": "enabled", "budget_tokens": 1024}
DISABLED: Any = {"type": "disabled"}
HI: Any = [{"role": "user", "content": "hi"}]


class Echo(Base):
    """Says its prompt again, and what bounds its thoughts."""

    repeats_prompt = False
    takes_thoughts = True

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": f"{inputs['text']} {inputs.get('thoughts', {}).get('max_tokens', '')}"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("text"))


@contextmanager
def serve(weights: Path, template: str, base: type = Echo) -> Iterator[str]:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(weights)
    tokenizer.chat_template = CHAT + template
    tokenizer.add_tokens(["<think>", "</think>"])
    kind = type("Told", (base,), {"tokenizer": tokenizer})
    with serve_asgi(create_app(spec_of(kind), {}, name="m"), lifespan="on") as url:
        yield url


def said(url: str, **fields: Any) -> str:
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        fields = {"max_tokens": 2048, "messages": HI, **fields}
        content = client.messages.create(model="m", **fields).content
    return "".join(getattr(block, "text", "") for block in content).strip().removeprefix("hi;")


@pytest.mark.parametrize(
    ("name", "nothing", "enabled", "disabled"),
    [
        ("Qwen3", "on", "on", "off"),
        ("DeepSeek-V3.1", "off", "on", "off"),
        ("Kimi-K2.5", "on", "on", "off"),
        ("Mistral-Small-4", "off", "on", "off"),
        ("DeepSeek-R1", "on", "on", "on"),
        ("gpt-oss", "on", "on", "on"),
        ("GLM-5.3", "on:max", "on:max", "on:max"),
    ],
)
def test_switches(weights: Path, name: str, nothing: str, enabled: str, disabled: str) -> None:
    with serve(weights, TEMPLATES[name]) as url:
        assert said(url) == nothing
        assert said(url, thinking=ENABLED) == enabled
        assert said(url, thinking=DISABLED) == disabled
        assert said(url, thinking={"type": "adaptive"}) == nothing


def test_the_other_fields(weights: Path) -> None:
    with serve(weights, TEMPLATES["gpt-oss"]) as url:
        assert said(url, output_config={"effort": "low"}) == "on:low"
        assert said(url, output_config={"effort": "low"}, thinking=DISABLED) == "on"
        given: Any = {"chat_template_kwargs": {"reasoning_effort": "own"}}
        assert said(url, output_config={"effort": "low"}, extra_body=given) == "on:own"
    with serve(weights, TEMPLATES["Mistral-Small-4"]) as url:
        assert said(url, output_config={"effort": "low"}) == "off"  # which the template refuses
        assert said(url, output_config={"effort": "high"}) == "on"
        assert said(url, output_config={"effort": "low"}, thinking=ENABLED) == "on"
    with serve(weights, TEMPLATES["Qwen3"]) as url:
        given = {"chat_template_kwargs": {"enable_thinking": True}}
        assert said(url, thinking=DISABLED, extra_body=given) == "on"
        with anthropic.Anthropic(base_url=url, api_key="none") as client:
            count = client.messages.count_tokens
            some = count(model="m", messages=HI).input_tokens
            assert count(model="m", messages=HI, thinking=DISABLED).input_tokens == some + 1


def test_responses_and_chats_have_the_same_switches(weights: Path) -> None:
    with (
        serve(weights, TEMPLATES["Kimi-K2.5"]) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        answer = client.responses.create(model="m", input="hi", reasoning={"effort": "none"})
        assert answer.output_text.strip() == "hi;off"
        chat = client.chat.completions.create(model="m", messages=HI, reasoning_effort="none")
        assert (chat.choices[0].message.content or "").strip() == "hi;off"


def test_a_budget_bounds_thoughts_where_they_can_be(weights: Path) -> None:
    class Unbound(Echo):
        takes_thoughts = False

    thinks = "{{- '<think>' }}"
    with serve(weights, thinks) as url:
        body = {"model": "m", "max_tokens": 4096, "messages": HI, "thinking": ENABLED}
        answer = httpx.post(f"{url}/v1/messages", json=body, timeout=60).json()
        assert answer["content"][0]["thinking"].endswith(" 1024")
    with serve(weights, thinks, Unbound) as url:
        answer = httpx.post(f"{url}/v1/messages", json=body, timeout=60).json()
        assert answer["content"][0]["thinking"].strip() == "hi;<think>"
    with serve(weights, "{{- 'plain' }}") as url:
        assert said(url, thinking=ENABLED) == "plain"


def test_what_is_given_counts_more() -> None:
    assert switched({"thinking": 1}, is_on=False) == {"thinking": 1}
    assert switched({"a": 1}, is_on=False) == {"a": 1, "thinking": False, "enable_thinking": False}
    blind = ThinkingSwitch(lambda told: str(told.get("reasoning_effort")))
    assert blind.variables(Wish(is_on=False), {"thinking": True}) == {"thinking": True}
    assert blind.variables(Wish(effort="low"), {}) == {"reasoning_effort": "low"}
    assert blind.variables(Wish(), {"a": 1}) == {"a": 1}
