"""Thoughts come apart from the answer, in pieces of every size and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import openai
import pytest
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app
from truthgpt_serve.server.text.reasoning import Thinking, ThoughtSplitter, find_reasoning

HI: Any = [{"role": "user", "content": "Hi"}]
CASES = {
    "begun by the prompt": ("a<think>\n", "I think\nso.\n</think>\n\nYes.", "I think\nso.", "Yes."),
    "begun by the answer": (
        "a",
        "\n<think>\nHm </th no</think>Yes</think>",
        "Hm </th no",
        "Yes</think>",
    ),
    "none": ("a", "No <think>thoughts</think>", "", "No <think>thoughts</think>"),
    "empty": ("a", "<think>\n\n</think>\n\nYes.", "", "Yes."),
    "never over": ("a<think>", "Hm </thi", "Hm </thi", ""),
    "nearly begun": ("a", "<thin", "", "<thin"),
    "nothing": ("a", "", "", ""),
}


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(("prompt", "text", "thought", "said"), CASES.values(), ids=CASES)
def test_splitting(prompt: str, text: str, thought: str, said: str, size: int) -> None:
    splitter = ThoughtSplitter(prompt)
    pieces = [splitter.feed(text[at : at + size]) for at in range(0, len(text), size)]
    pieces.append(splitter.finish())
    assert "".join(piece.thought for piece in pieces) == thought
    assert "".join(piece.said for piece in pieces) == said


GEMMA = Thinking("gemma4", "<|channel>", "<channel|>", "thought")
MARKED = {
    "a title": ("a", "<|channel>thought\nHm.\n<channel|>Yes.", "Hm.", "Yes."),
    "a title and nothing": ("a", "<|channel>thought<channel|>Yes.", "", "Yes."),
    "no title": ("a", "<|channel>Hm.<channel|>Yes.", "Hm.", "Yes."),
    "cut off": ("a", "<|channel>thou", "", ""),
    "none": ("a", "Yes <|channel>no", "", "Yes <|channel>no"),
}


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(("prompt", "text", "thought", "said"), MARKED.values(), ids=MARKED)
def test_other_marks(prompt: str, text: str, thought: str, said: str, size: int) -> None:
    splitter = ThoughtSplitter(prompt, GEMMA)
    pieces = [splitter.feed(text[at : at + size]) for at in range(0, len(text), size)]
    pieces.append(splitter.finish())
    assert "".join(piece.thought for piece in pieces) == thought
    assert "".join(piece.said for piece in pieces) == said


PLAIN = "{%- for message in messages %}{{- message.content }}{%- endfor %}"
THINKS = """{%%- for message in messages %%}
{%%- if message.reasoning_content %%}{{- '%s' + message.reasoning_content }}{%%- endif %%}
{{- message.content }}{%%- endfor %%}"""
HARMONY_END = PLAIN + "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"


@pytest.mark.parametrize(
    ("tokens", "template", "name"),
    [
        (("<seed:think>", "</seed:think>"), THINKS % "<seed:think>", "seed_oss"),
        (("<seed:think>", "</seed:think>"), PLAIN, None),
        (("<seed:think>",), THINKS % "<seed:think>", None),
        (("[THINK]", "[/THINK]"), THINKS % "[THINK]", "mistral"),
        (("<|channel>", "<channel|>"), THINKS % "<|channel>thought\n", "gemma4"),
        (("<|inner_prefix|>", "<|inner_suffix|>"), THINKS % "<|inner_prefix|>", ""),
        (("<|channel|>", "<|message|>"), HARMONY_END, "openai_gptoss"),
        (("<|channel|>", "<|message|>"), PLAIN, None),
    ],
)
def test_how_a_template_thinks(
    words: Any, tokens: tuple[str, ...], template: str, name: str | None
) -> None:
    words.chat_template = template
    found = find_reasoning(words.apply_chat_template, tokens)
    assert (None if found is None else found.name) == name


ON, OFF = "{{- '<think>' }}", "{{- '</think>' }}"


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("deepseek_r1", ON),
        ("qwen3", f"{{%- if enable_thinking is false %}}{OFF}{{%- endif %}}"),
        ("qwen3", f"{{%- if enable_thinking is false %}}{OFF}{{%- else %}}{ON}{{%- endif %}}"),
        ("deepseek_r1", f"{{%- if thinking is false %}}{OFF}{{%- else %}}{ON}{{%- endif %}}"),
        ("", f"{{%- if thinking %}}{ON}{{%- else %}}{OFF}{{%- endif %}}"),
        ("", f"{{%- if enable_thinking %}}{ON}{{%- endif %}}"),
        (None, OFF),
        (None, ""),
    ],
)
def test_how_thoughts_are_switched(words: Any, end: str, name: str | None) -> None:
    words.chat_template = PLAIN + end
    found = find_reasoning(words.apply_chat_template, ("<think>", "</think>"))
    assert (None if found is None else found.name) == name


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_llama(tmp_path_factory.mktemp("text"))
    return transformers.AutoTokenizer.from_pretrained(folder)


class Tokens:
    """A template that begins thoughts, and words for them."""

    @staticmethod
    def apply_chat_template(messages: Any, tools: Any = None, **_: Any) -> str:
        told = "" if tools is None else str(tools)
        return f"{told}{[m['content'] for m in messages]}<think>\n"

    @staticmethod
    def get_vocab() -> dict[str, int]:
        return {"<think>": 1, "</think>": 2}


class Thinker(Base):
    """Thinks, then answers or calls a tool."""

    tokenizer = Tokens()
    repeats_prompt = False
    takes_constraint = False

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"text": "".join(item["text"] for item in self.stream(inputs))}

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        call = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
        text = "I see.\n</think>\n\n" + (call if "add" in inputs["text"] else "Hello.")
        for at in range(0, len(text), 3):
            yield {"text": text[at : at + 3]}


@contextmanager
def serving() -> Iterator[str]:
    with serve_asgi(create_app(spec_of(Thinker), {}, name="sample"), lifespan="on") as url:
        yield url


def test_over_http() -> None:
    tools: Any = [{"type": "function", "function": {"name": "add"}}]
    with serving() as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        card: Any = client.models.retrieve("sample")
        assert card.capabilities["reasoning"]
        answer: Any = client.chat.completions.create(model="sample", messages=HI)
        message = answer.choices[0].message
        assert (message.reasoning, message.content) == ("I see.", "Hello.")
        called: Any = client.chat.completions.create(model="sample", messages=HI, tools=tools)
        message = called.choices[0].message
        assert (message.reasoning, message.content) == ("I see.", None)
        assert message.tool_calls[0].function.name == "add"
        stream: Any = client.chat.completions.create(model="sample", messages=HI, stream=True)
        deltas = [chunk.choices[0].delta for chunk in stream]
        assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == "I see."
        assert "".join(delta.content or "" for delta in deltas) == "Hello."
        begun = [*HI, {"role": "assistant", "content": "Well, "}]
        options = {"continue_final_message": True}
        goes_on: Any = client.chat.completions.create(
            model="sample", messages=begun, extra_body=options
        )
        assert "</think>" in goes_on.choices[0].message.content


def test_over_other_apis() -> None:
    with serving() as url:
        with anthropic.Anthropic(base_url=url, api_key="none") as claude:
            message = claude.messages.create(model="sample", messages=HI, max_tokens=9)
        assert [block.type for block in message.content] == ["thinking", "text"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            response = client.responses.create(model="sample", input="Hi")
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text == "Hello."
