"""Pydantic AI on its three APIs: text, streams, tools and typed output."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles.anthropic import AnthropicModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from report import BASE_URL, MODEL, PROMPT, ROOT_URL, check, run

openai = OpenAIProvider(base_url=BASE_URL, api_key="none")
anthropic = AnthropicProvider(base_url=ROOT_URL, api_key="none")
MODELS = {
    "chat": OpenAIChatModel(MODEL, provider=openai),
    "responses": OpenAIResponsesModel(MODEL, provider=openai),
    "messages": AnthropicModel(
        MODEL, provider=anthropic, profile=AnthropicModelProfile(supports_json_schema_output=True)
    ),
}
SETTINGS = {"max_tokens": 800, "temperature": 0.0, "parallel_tool_calls": False}


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    thing: Literal["boat", "kite"]


class Song(BaseModel):
    """What a song is of."""

    verses: Literal[1, 2, 3]


def paint(color: Literal["red", "blue"]) -> str:
    """Paints the boat."""
    return f"painted {color}"


for name, model in MODELS.items():

    @check(f"{name}, text")
    async def _(model=model) -> None:
        agent = Agent(model, instructions="Be brief.", model_settings=SETTINGS, retries=0)
        result = await agent.run(PROMPT)
        again = await agent.run("Another one.", message_history=result.all_messages())
        assert again.output

    @check(f"{name}, streamed")
    async def _(model=model) -> None:
        async with Agent(model, model_settings=SETTINGS, retries=0).run_stream(PROMPT) as result:
            assert "".join([piece async for piece in result.stream_text(delta=True)])

    @check(f"{name}, tools", "tools")
    async def _(model=model) -> None:
        agent = Agent(model, tools=[paint], model_settings=SETTINGS, retries=0)
        assert (await agent.run(PROMPT)).output

    @check(f"{name}, output by a tool", "json")
    async def _(model=model) -> None:
        output = [ToolOutput(Story), ToolOutput(Song)]
        agent = Agent(model, output_type=output, model_settings=SETTINGS, retries=0)
        assert isinstance((await agent.run(PROMPT)).output, Story | Song)

    @check(f"{name}, output by a schema", "json")
    async def _(model=model) -> None:
        output = NativeOutput(Story)
        agent = Agent(model, output_type=output, model_settings=SETTINGS, retries=0)
        assert isinstance((await agent.run(PROMPT)).output, Story)


run()
