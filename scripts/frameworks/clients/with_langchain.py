"""LangChain with both of its packages: chats, structured output, tools and an agent."""

from __future__ import annotations

from typing import Literal

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel
from report import BASE_URL, MODEL, PROMPT, ROOT_URL, check, run

openai = ChatOpenAI(
    base_url=BASE_URL, api_key="none", model=MODEL, max_retries=0, timeout=120, max_tokens=800
)
responses = ChatOpenAI(
    base_url=BASE_URL, api_key="none", model=MODEL, max_retries=0, use_responses_api=True
)
anthropic = ChatAnthropic(
    base_url=ROOT_URL, api_key="none", model=MODEL, max_retries=0, timeout=120, max_tokens=800
)


class Thing(BaseModel):
    """A thing with a color."""

    name: Literal["boat", "kite"]
    color: Literal["red", "blue"]


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    thing: Thing


@tool
def paint(color: Literal["red", "blue"], times: Literal[1, 2]) -> str:
    """Paints the boat."""
    return f"painted {color}, {times} times"


@tool
def sail(to: Literal["island", "harbor"]) -> str:
    """Sails the boat."""
    return f"sailed to the {to}"


@check("chat")
def _() -> None:
    answer = openai.invoke([("system", "Be brief."), ("user", PROMPT)])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


@check("chat, streamed")
def _() -> None:
    chunks = list(openai.stream(PROMPT, stream_usage=True))
    assert sum((chunk.usage_metadata or {}).get("output_tokens", 0) for chunk in chunks) > 0


@check("chats at once")
async def _() -> None:
    assert len(await openai.abatch([PROMPT, "Hello."])) == 2


@check("completion")
def _() -> None:
    model = OpenAI(base_url=BASE_URL, api_key="none", model=MODEL, max_tokens=10, n=2, best_of=2)
    assert model.invoke("Once upon a time")


@check("logprobs", "logprobs")
def _() -> None:
    answer = openai.bind(logprobs=True, max_tokens=4).invoke(PROMPT)
    assert answer.response_metadata["logprobs"]["content"]


for method, needs in (("json_schema", "json"), ("function_calling", "json")):

    @check(f"structured output, {method}", needs)
    def _(method: str = method) -> None:
        answer = openai.with_structured_output(Story, method=method).invoke(PROMPT)
        assert isinstance(answer, Story)


@check("tools, any", "json")
def _() -> None:
    answer = openai.bind_tools([paint, sail], tool_choice="any").invoke(PROMPT)
    assert answer.tool_calls[0]["name"] in ("paint", "sail")


@check("tools, any, streamed", "json")
def _() -> None:
    chunks = list(openai.bind_tools([paint], tool_choice="any").stream(PROMPT))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.tool_calls[0]["args"]["color"] in ("red", "blue")


@check("agent", "tools")
def _() -> None:
    agent = create_agent(openai, [paint, sail], system_prompt="Be brief.")
    state = agent.invoke({"messages": [("user", PROMPT)]}, {"recursion_limit": 6})
    assert state["messages"][-1].content


@check("agent, structured", "json")
def _() -> None:
    agent = create_agent(openai, [], response_format=Story)
    state = agent.invoke({"messages": [("user", PROMPT)]}, {"recursion_limit": 6})
    assert isinstance(state["structured_response"], Story)


@check("responses")
def _() -> None:
    assert responses.invoke(PROMPT).text


@check("responses, structured output", "json")
def _() -> None:
    assert isinstance(responses.with_structured_output(Story).invoke(PROMPT), Story)


@check("Anthropic, chat")
def _() -> None:
    assert anthropic.invoke([("system", "Be brief."), ("user", PROMPT)]).content


@check("Anthropic, streamed")
def _() -> None:
    assert "".join(chunk.text for chunk in anthropic.stream(PROMPT))


@check("Anthropic, structured output", "json")
def _() -> None:
    answer = anthropic.with_structured_output(Story, method="function_calling").invoke(PROMPT)
    assert isinstance(answer, Story)


@check("Anthropic, structured output, json_schema", "json")
def _() -> None:
    answer = anthropic.with_structured_output(Story, method="json_schema").invoke(PROMPT)
    assert isinstance(answer, Story)


@check("Anthropic, tools, any", "json")
def _() -> None:
    answer = anthropic.bind_tools([paint, sail], tool_choice="any").invoke(PROMPT)
    assert answer.tool_calls


@check("Anthropic, agent", "tools")
def _() -> None:
    agent = create_agent(anthropic, [paint, sail])
    state = agent.invoke({"messages": [("user", PROMPT)]}, {"recursion_limit": 6})
    assert state["messages"][-1].content


run()
