"""OpenAI's Agents SDK over chats and over responses."""

from __future__ import annotations

from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.agent import StopAtTools
from openai import AsyncOpenAI
from pydantic import BaseModel
from report import BASE_URL, MODEL, PROMPT, check, run

set_tracing_disabled(True)
MODELS = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
OPTIONS = {"max_tokens": 800, "temperature": 0.0}


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    thing: Literal["boat", "kite"]


@function_tool
def paint(color: Literal["red", "blue"]) -> str:
    """Paints the boat."""
    return f"painted {color}"


def model_of(name: str) -> object:
    """Returns a model with connections of its own: each check has an event loop."""
    client = AsyncOpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120)
    return MODELS[name](MODEL, client)


for name in MODELS:

    @check(f"{name}, text")
    async def _(name=name) -> None:
        settings = ModelSettings(**OPTIONS)
        agent = Agent(
            name="teller", instructions="Be brief.", model=model_of(name), model_settings=settings
        )
        assert (await Runner.run(agent, PROMPT)).final_output

    @check(f"{name}, streamed")
    async def _(name=name) -> None:
        agent = Agent(name="teller", model=model_of(name), model_settings=ModelSettings(**OPTIONS))
        result = Runner.run_streamed(agent, PROMPT)
        kinds = {event.type async for event in result.stream_events()}
        assert "raw_response_event" in kinds
        assert result.final_output

    @check(f"{name}, tools, auto", "tools")
    async def _(name=name) -> None:
        agent = Agent(
            name="painter", model=model_of(name), tools=[paint],
            model_settings=ModelSettings(**OPTIONS),
        )  # fmt: skip
        assert (await Runner.run(agent, PROMPT)).final_output

    @check(f"{name}, tools, required", "json")
    async def _(name=name) -> None:
        agent = Agent(
            name="painter", model=model_of(name), tools=[paint],
            model_settings=ModelSettings(**OPTIONS, tool_choice="required"),
            tool_use_behavior=StopAtTools(stop_at_tool_names=["paint"]),
        )  # fmt: skip
        assert "painted" in (await Runner.run(agent, PROMPT)).final_output

    @check(f"{name}, tools, required, then an answer", "json", "tools")
    async def _(name=name) -> None:
        agent = Agent(
            name="painter", model=model_of(name), tools=[paint],
            model_settings=ModelSettings(**OPTIONS, tool_choice="required"),
        )  # fmt: skip
        assert (await Runner.run(agent, PROMPT)).final_output

    @check(f"{name}, handoff", "tools")
    async def _(name=name) -> None:
        settings = ModelSettings(**OPTIONS)
        other = Agent(name="singer", model=model_of(name), model_settings=settings)
        agent = Agent(
            name="teller", model=model_of(name), handoffs=[other], model_settings=settings
        )
        assert (await Runner.run(agent, PROMPT)).final_output

    @check(f"{name}, typed output", "json")
    async def _(name=name) -> None:
        agent = Agent(
            name="teller", model=model_of(name), output_type=Story,
            model_settings=ModelSettings(**OPTIONS),
        )  # fmt: skip
        assert isinstance((await Runner.run(agent, PROMPT)).final_output, Story)


run()
