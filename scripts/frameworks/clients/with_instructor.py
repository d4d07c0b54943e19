"""Instructor: structured output by schemas and by tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import anthropic
import instructor
import openai
from pydantic import BaseModel, Field
from report import BASE_URL, MODEL, PROMPT, ROOT_URL, check, run

sdk = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120)
other = anthropic.Anthropic(base_url=ROOT_URL, api_key="none", max_retries=0, timeout=120)
USER = [{"role": "user", "content": PROMPT}]


class Thing(BaseModel):
    """A thing with a color."""

    name: Literal["boat", "kite"]
    color: Literal["red", "blue"]


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    things: list[Thing] = Field(min_length=1, max_length=2)


def ask(mode: instructor.Mode, **options: object) -> Story:
    """Asks for a story in a mode."""
    client = instructor.from_openai(sdk, mode=mode)
    return client.chat.completions.create(
        model=MODEL, messages=USER, response_model=Story, max_retries=0, **options
    )


@check("tools", "json")
def _() -> None:
    assert ask(instructor.Mode.TOOLS).things


@check("tools, strict", "json")
def _() -> None:
    assert ask(instructor.Mode.TOOLS_STRICT).things


@check("JSON schema", "json")
def _() -> None:
    assert ask(instructor.Mode.JSON_SCHEMA).things


@check("streamed, in parts", "json")
def _() -> None:
    client = instructor.from_openai(sdk, mode=instructor.Mode.TOOLS)
    parts = client.chat.completions.create_partial(
        model=MODEL, messages=USER, response_model=Story, max_retries=0
    )
    assert list(parts)[-1].things


@check("streamed, several", "json")
def _() -> None:
    client = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)
    things = client.chat.completions.create(
        model=MODEL, messages=USER, response_model=Iterable[Thing], max_retries=0, stream=True,
        max_tokens=1000,
    )  # fmt: skip
    assert all(thing.color in ("red", "blue") for thing in things)


@check("responses", "json")
def _() -> None:
    client = instructor.from_openai(sdk, mode=instructor.Mode.RESPONSES_TOOLS)
    story = client.responses.create(model=MODEL, input=PROMPT, response_model=Story, max_retries=0)
    assert story.things


@check("Anthropic's tools", "json")
def _() -> None:
    client = instructor.from_anthropic(other, mode=instructor.Mode.ANTHROPIC_TOOLS)
    story = client.messages.create(
        model=MODEL, messages=USER, response_model=Story, max_tokens=1000, max_retries=0
    )
    assert story.things


run()
