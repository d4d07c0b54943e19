"""Answers of the shipped story model that are bound to schemas, patterns and grammars."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types
import openai
import pydantic
import pytest

from deployments.hf_transformers.generation import binding
from tests.support.grammar_schemas import small_schema
from tests.support.sample_models import Base, spec_of
from tests.support.servers import serve_asgi
from tests.support.transformers_models import client_of, configuration
from truthgpt_serve.server import create_app

STORY = Path(__file__).parents[5] / "models" / "story"
SEEDS = (*range(29), 198)  # in the last one a bounded text would have a tab
ASK: Any = [{"role": "user", "content": "Tell me a story about Mia and a red boat."}]


@pytest.fixture(scope="module", params=["continuous", "padded"])
def client(request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with client_of(configuration(STORY, batching=request.param), name="story") as client:
        yield client


def bound(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.long("answers many random schemas")
async def test_answers_to_random_schemas_validate(client: openai.OpenAI) -> None:
    async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as many:

        async def ask(seed: int) -> Any:
            answer = await many.chat.completions.create(
                model="story",
                messages=ASK,
                temperature=1.0,
                seed=seed,
                max_tokens=900,
                response_format=bound(small_schema(seed)),
            )
            return answer.choices[0]

        found = await asyncio.gather(*map(ask, SEEDS))
    for seed, choice in zip(SEEDS, found, strict=True):
        assert choice.finish_reason == "stop", (seed, choice)
        jsonschema.validate(json.loads(choice.message.content), small_schema(seed))
    assert len({choice.message.content for choice in found}) > len(SEEDS) // 2


@pytest.mark.long("writes hundreds of bound tokens")
def test_bound_answers_beside_free_ones(client: openai.OpenAI) -> None:
    free: dict[str, Any] = {"model": "story", "messages": ASK, "temperature": 0, "max_tokens": 30}
    alone = client.chat.completions.create(**free).choices[0].message.content

    async def mixed() -> Any:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none") as many:
            calls = [
                many.chat.completions.create(**free),
                many.chat.completions.create(
                    **free, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
                ),
                many.chat.completions.create(**free),
                many.chat.completions.create(
                    **free, extra_body={"structured_outputs": {"regex": "[0-9]{3}"}}
                ),
            ]
            return [answer.choices[0] for answer in await asyncio.gather(*calls)]

    first, chosen, third, digits = asyncio.run(mixed())
    assert first.message.content == third.message.content == alone
    assert chosen.message.content in ("yes", "no")
    assert re.fullmatch("[0-9]{3}", digits.message.content)
    assert (chosen.finish_reason, digits.finish_reason) == ("stop", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_becomes_slow_fails_alone(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(binding, "SLOW_STEP_S", 0.001)
    ask: Any = {"model": "story", "messages": ASK, "temperature": 0}
    grammar: Any = {"structured_outputs": {"grammar": 'root ::= "a" | root root'}}
    end = json.loads((STORY / "config.json").read_text())["eos_token_id"]
    grammar["logit_bias"] = {str(end): -100}

    def whole() -> list[Any]:
        answer: Any = client.chat.completions.create(
            **ask, max_tokens=900, stream=stream, extra_body=grammar
        )
        return list(answer)

    with ThreadPoolExecutor(1) as pool:
        failing = pool.submit(whole)
        free = client.chat.completions.create(**ask, max_tokens=20)
        with pytest.raises(openai.APIError, match="for one token") as caught:
            failing.result()
    assert stream or isinstance(caught.value, openai.BadRequestError)
    assert free.usage is not None
    assert free.usage.completion_tokens == 20


class Boat(pydantic.BaseModel):
    color: str = pydantic.Field(max_length=8)
    length: int
    owner: str | None = pydantic.Field(max_length=8)


def test_openais_parse(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="story", messages=ASK, response_format=Boat, seed=1, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Boat)
    with client.chat.completions.stream(
        model="story", messages=ASK, response_format=Boat, seed=1, max_tokens=200
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


def test_the_card(client: openai.OpenAI) -> None:
    card: Any = client.models.retrieve("story")
    assert card.capabilities == {
        "context_length": 1024,
        "tools": False,
        "json": True,
        "logprobs": True,
        "prompt_logprobs": True,
        "token_ids": True,
        "logit_bias": True,
        "images": False,
        "reasoning": False,
    }


def test_any_object_and_grammars(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="story",
        messages=ASK,
        response_format={"type": "json_object"},
        max_tokens=4,
        seed=2,
        n=2,
    )
    for choice in answer.choices:
        assert (choice.message.content or "").startswith("{")
    for grammar in ('root ::= "a" [0-9]+ "b"', 'start: "a" /[0-9]+/ "b"'):
        text = client.completions.create(
            model="story",
            prompt="Once",
            max_tokens=60,
            seed=3,
            logit_bias={},
            extra_body={"structured_outputs": {"grammar": grammar}, "ignore_eos": True},
        ).choices[0]
        assert re.match("a[0-9]+b?", text.text)
        assert text.finish_reason == "length" or text.text.endswith("b")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        (
            {"response_format": bound({"type": "array", "uniqueItems": True})},
            "response_format.json_schema.schema",
            "uniqueItems",
        ),
        (
            {"response_format": bound({"type": "foo"})},
            "response_format.json_schema.schema",
            "cannot",
        ),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "cannot"),
        ({"structured_outputs": {"regex": "a" * 20000}}, "structured_outputs.regex", "max_regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty"),
        ({"structured_outputs": {}}, "structured_outputs", "one of"),
        (
            {"structured_outputs": {"structural_tag": "x"}},
            "structured_outputs.structural_tag",
            "engine",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs.regex",
            "together",
        ),
        (
            {
                "response_format": bound(
                    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
                )
            },
            "response_format.json_schema.schema",
            "cannot",
        ),
    ],
)
def test_what_cannot_bind_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.chat.completions.create(model="story", messages=ASK, extra_body=fields)
    assert caught.value.param == param


class Bound(Base):
    """A class of one's own that follows a compiled grammar with xgrammar."""

    takes_constraint = True

    def load(self, cfg: dict[str, Any]) -> None:
        import transformers

        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(STORY)

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        import xgrammar

        matcher = xgrammar.GrammarMatcher(inputs["constraint"])
        return {"text": matcher.find_jump_forward_string()}


@pytest.mark.long("writes hundreds of bound tokens")
def test_a_class_of_ones_own_gets_the_compiled_grammar() -> None:
    app = create_app(spec_of(Bound), {}, name="own")
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="own", messages=ASK, response_format=bound({"const": "a boat"})
        )
        assert answer.choices[0].message.content == '"a boat"'
