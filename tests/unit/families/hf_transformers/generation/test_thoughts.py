"""Thoughts before answers that are bound: their length is, and the answer begins behind them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import transformers
import xgrammar

from deployments.hf_transformers.generation.binding import Follower, Thoughts, start_follower
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.transformers_models import client_of, configuration

TEMPLATE = """{%- for tool in tools or [] %}{{- tool | tojson }}{%- endfor %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{{- '<tool_call>\\n{"name": "' + call.function.name }}
{{- '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}
{%- endfor %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"""
BEGUN = TEMPLATE + "{{- '<think>\\n' }}{%- endif %}"
OPTIONAL = (
    TEMPLATE + "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "why": {"enum": ["red", "blue"]}},
    "required": ["ok", "why"],
    "additionalProperties": False,
}
BOUND: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
ADD: Any = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
SUB: Any = {"type": "function", "function": {"name": "sub", "parameters": SCHEMA}}
ASK: Any = [{"role": "user", "content": "Hi"}]


def make_thinker(folder: Path, template: str) -> Path:
    """Writes a tiny model whose tokens are its tokenizer's and those that mark thoughts."""
    tiny = make_tiny_llama(folder / "tiny")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "thinker")
    tokenizer.save_pretrained(folder / "thinker")
    return folder / "thinker"


@pytest.fixture(scope="module", params=[BEGUN, OPTIONAL], ids=["begun", "optional"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    folder = make_thinker(tmp_path_factory.mktemp("thinker"), request.param)
    with client_of(configuration(folder), name="tiny") as client:
        card: Any = client.models.retrieve("tiny")
        assert card.capabilities["reasoning"]
        yield client


def ask(client: openai.OpenAI, *, begins: int, **fields: Any) -> Any:
    """Returns a choice; where the thoughts are optional, `begins` has the answer think."""
    vocabulary = {"<think>": 1536, "</think>": 1537}
    bias = fields.pop("bias", {}) | {str(vocabulary["<think>"]): begins}
    fields = {"max_tokens": 300, "temperature": 1.0, "seed": 3, **fields}
    answer = client.chat.completions.create(model="tiny", messages=ASK, logit_bias=bias, **fields)
    return answer


def is_optional(client: openai.OpenAI) -> bool:
    tokens: Any = client.post(
        "/../tokenize", body={"model": "tiny", "messages": ASK}, cast_to=object
    )
    return "<think>" not in str(tokens) and 1536 not in tokens["tokens"]


@pytest.mark.long("writes hundreds of bound tokens")
@pytest.mark.parametrize("budget", [None, 0, 7])
def test_an_answer_is_bound_behind_its_thoughts(client: openai.OpenAI, budget: int | None) -> None:
    begins = 100 if is_optional(client) else -100
    more = {} if budget is None else {"extra_body": {"thinking_token_budget": budget}}
    # Only in the beginning may "<think>" be a token: it is biased, and comes at once.
    choice = ask(client, begins=begins, response_format=BOUND, **more).choices[0]
    assert choice.finish_reason == "stop"
    json.loads(choice.message.content)
    thought = getattr(choice.message, "reasoning", "")
    assert bool(thought) == (budget != 0)
    answer = ask(client, begins=begins, response_format=BOUND, stream=True, **more)
    chunks = list(answer)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == choice.message.content
    thoughts = [getattr(c.choices[0].delta, "reasoning", None) for c in chunks if c.choices]
    assert "".join(filter(None, thoughts)) == thought


def test_thoughts_end_by_themselves(client: openai.OpenAI) -> None:
    begins = 90 if is_optional(client) else -100
    choice = ask(client, begins=begins, response_format=BOUND, bias={"1537": 100}).choices[0]
    assert not getattr(choice.message, "reasoning", "")
    assert set(json.loads(choice.message.content)) == {"ok", "why"}


@pytest.mark.long("writes hundreds of bound tokens")
def test_a_forced_call_comes_behind_thoughts(client: openai.OpenAI) -> None:
    begins = 100 if is_optional(client) else -100
    named: Any = {"type": "function", "function": {"name": "sub"}}
    for tools, choice in (([ADD], "required"), ([ADD, SUB], "required"), ([ADD, SUB], named)):
        found = ask(client, begins=begins, tools=tools, tool_choice=choice).choices[0]
        [call] = found.message.tool_calls
        assert set(json.loads(call.function.arguments)) == {"ok", "why"}
        assert call.function.name == ("sub" if choice is named else call.function.name)
        assert found.message.reasoning
        assert found.finish_reason == "tool_calls"


def test_an_answer_that_need_not_think(client: openai.OpenAI) -> None:
    if not is_optional(client):
        return
    choice = ask(client, begins=-100, response_format=BOUND).choices[0]
    assert not getattr(choice.message, "reasoning", "")
    json.loads(choice.message.content)


def test_free_answers_have_a_budget_too(client: openai.OpenAI) -> None:
    begins = 100 if is_optional(client) else -100
    more = {"extra_body": {"thinking_token_budget": 5}}
    answer = ask(client, begins=0 if begins < 0 else begins, max_tokens=20, **more)
    usage, message = answer.usage, answer.choices[0].message
    assert usage.completion_tokens <= 20
    assert message.reasoning
    if begins < 0:
        assert message.content


def allowed(follower: Follower, size: int) -> set[int]:
    """Returns the tokens that may come next."""
    mask = xgrammar.allocate_token_bitmask(1, size)
    if not follower.fill(mask, 0):
        return set(range(size))
    return {token for token in range(size) if int(mask[0, token // 32]) >> (token % 32) & 1}


def test_what_may_follow() -> None:
    words = [b"a", b"b", *(b"x%d" % number for number in range(60)), b"<", b">", b"</s>"]
    begin, end, stop = 62, 63, 64
    info = xgrammar.TokenizerInfo(words, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[stop])
    grammar = xgrammar.GrammarCompiler(info, max_threads=1).compile_regex("ab")
    size = len(words)
    begun = start_follower(grammar, Thoughts(begin, end, 2, is_begun=True), {stop})
    assert begun is not None
    for _ in range(2):
        assert allowed(begun, size) == set(range(size)) - {stop}
        begun.accept(1)
    assert allowed(begun, size) == {end}
    begun.accept(end)
    assert allowed(begun, size) == {0}
    begun.accept(0)
    assert allowed(begun, size) == {1}
    choice = start_follower(grammar, Thoughts(begin, end, 2), {stop})
    assert choice is not None
    assert allowed(choice, size) == {0, begin}
    choice.accept(begin)
    choice.accept(end)
    assert allowed(choice, size) == {0}
    free = start_follower(None, Thoughts(begin, end, 0, is_begun=True), {stop})
    assert free is not None
    assert allowed(free, size) == {end}
    free.accept(end)
    assert allowed(free, size) == set(range(size))
    assert start_follower(None) is None
