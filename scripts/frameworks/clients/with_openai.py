"""OpenAI's own package: chats, completions, structured output, tools and responses."""

from __future__ import annotations

import json
from enum import Enum
from typing import Literal

import openai
from pydantic import BaseModel, Field
from report import BASE_URL, MODEL, PROMPT, check, run

client = openai.OpenAI(base_url=BASE_URL, api_key="none", max_retries=0, timeout=120)
USER = [{"role": "user", "content": PROMPT}]


class Color(Enum):
    """A color."""

    RED = "red"
    BLUE = "blue"


class Thing(BaseModel):
    """A thing with a color."""

    name: Literal["boat", "kite"]
    color: Color


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    thing: Thing
    pages: int = Field(ge=1, le=9)


def tool(name: str, model: type[BaseModel]) -> dict:
    """Returns a tool whose arguments are a model's fields."""
    schema = model.model_json_schema()
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("tell", Story), tool("paint", Thing)]


@check("chat")
def _() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=20)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


@check("chat, streamed with usage")
def _() -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=20, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    assert chunks[-1].usage.completion_tokens > 0
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])


@check("roles and parts")
def _() -> None:
    messages = [
        {"role": "developer", "content": "Tell short stories."},
        {"role": "user", "content": [{"type": "text", "text": PROMPT}], "name": "ann"},
        {"role": "assistant", "content": "Once there was a boat."},
        {"role": "user", "content": "Another one."},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=8, user="ann", store=False,
        metadata={"a": "b"}, service_tier="auto", seed=1, temperature=0.5, top_p=0.9,
    )  # fmt: skip
    assert answer.choices[0].finish_reason in ("length", "stop")


@check("n answers")
def _() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=8, n=3, temperature=1, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@check("stop")
def _() -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=90, stop=["."])
    assert answer.choices[0].finish_reason == "stop"
    assert "." not in answer.choices[0].message.content


@check("completions, prompts and n")
def _() -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["Once", "One day"], n=2, max_tokens=6, temperature=1
    )
    assert len(answer.choices) == 4


@check("completions, token ids", "token_ids")
def _() -> None:
    answer = client.completions.create(model=MODEL, prompt=[[5, 6, 7]], max_tokens=6)
    assert answer.usage.prompt_tokens in (3, 4)


@check("chat, logprobs", "logprobs")
def _() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)


@check("completions, echo and logprobs", "logprobs", "prompt_logprobs")
def _() -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=1, echo=True, logprobs=1
    )
    assert answer.choices[0].logprobs.token_logprobs[0] is None


@check("logit_bias", "logit_bias")
def _() -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=3, logit_bias={"100": 100}, temperature=0
    )
    assert answer.usage.completion_tokens == 3


@check("parsed answer", "json")
def _() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Story)
    assert 1 <= answer.choices[0].message.parsed.pages <= 9


@check("JSON object", "json")
def _() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, max_tokens=400, response_format={"type": "json_object"}
    )
    content = answer.choices[0].message.content
    assert content.lstrip()[:1] == "{"


@check("tools, auto", "tools")
def _() -> None:
    client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS, max_tokens=30)


@check("tools, one forced", "json")
def _() -> None:
    choice = {"type": "function", "function": {"name": "paint"}}
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, tools=TOOLS, tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.name == "paint"
    Thing.model_validate_json(call.function.arguments)


@check("tools, required of two", "json")
def _() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=USER, tools=TOOLS, tool_choice="required", max_tokens=600
    )
    assert answer.choices[0].message.tool_calls
    for call in answer.choices[0].message.tool_calls:
        kind = {"tell": Story, "paint": Thing}[call.function.name]
        kind.model_validate_json(call.function.arguments)
        break


@check("tools, required, streamed", "json")
def _() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=USER, tools=[openai.pydantic_function_tool(Story)],
        tool_choice="required", parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        stream.until_done()
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Story)


@check("tools, history")
def _() -> None:
    call = {"name": "paint", "arguments": '{"name": "boat", "color": "red"}'}
    messages = [
        *USER,
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "painted"},
    ]  # fmt: skip
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice="none", max_tokens=10
    )
    assert answer.choices[0].message.content


@check("response")
def _() -> None:
    answer = client.responses.create(
        model=MODEL, input=PROMPT, instructions="Be brief.", max_output_tokens=20, store=False
    )
    assert answer.output_text


@check("response, streamed")
def _() -> None:
    with client.responses.stream(model=MODEL, input=PROMPT, max_output_tokens=20) as stream:
        events = list(stream)
    assert {"response.created", "response.output_text.delta"} <= {event.type for event in events}
    assert events[-1].response.output_text


@check("response, parsed", "json")
def _() -> None:
    answer = client.responses.parse(model=MODEL, input=PROMPT, text_format=Story)
    assert isinstance(answer.output_parsed, Story)


@check("response, tool", "json")
def _() -> None:
    paint = TOOLS[1]["function"]
    answer = client.responses.create(
        model=MODEL, input=PROMPT, tool_choice="required",
        tools=[{"type": "function", "strict": True, **paint}],
    )  # fmt: skip
    (call, *_) = [item for item in answer.output if item.type == "function_call"]
    Thing.model_validate(json.loads(call.arguments))


@check("models")
def _() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check("error")
def _() -> None:
    found = None
    try:
        client.chat.completions.create(model=MODEL, messages=USER, max_tokens=-1)
    except openai.BadRequestError as error:
        found = error.param
    assert found


run()
