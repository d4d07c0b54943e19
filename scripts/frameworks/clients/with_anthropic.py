"""Anthropic's own package: messages, streams, tools, prefill and counting."""

from __future__ import annotations

import anthropic
from report import MODEL, PROMPT, ROOT_URL, check, run

client = anthropic.Anthropic(base_url=ROOT_URL, api_key="none", max_retries=0, timeout=120)
USER = [{"role": "user", "content": PROMPT}]
THING = {
    "type": "object",
    "$defs": {"Color": {"type": "string", "enum": ["red", "blue"]}},
    "properties": {"name": {"enum": ["boat", "kite"]}, "color": {"$ref": "#/$defs/Color"}},
    "required": ["name", "color"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "paint", "description": "Paints a thing.", "input_schema": THING},
    {"name": "sail", "input_schema": {"type": "object", "properties": {}}},
]


@check("message")
def _() -> None:
    answer = client.messages.create(
        model=MODEL, messages=USER, max_tokens=20, system="Be brief.", metadata={"user_id": "a"}
    )
    assert answer.content[0].text
    assert answer.stop_reason in ("max_tokens", "end_turn")
    assert answer.usage.input_tokens > 0


@check("message, streamed")
def _() -> None:
    with client.messages.stream(model=MODEL, messages=USER, max_tokens=20) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text
    assert final.usage.output_tokens > 0


@check("blocks and cache_control")
def _() -> None:
    block = {"type": "text", "text": PROMPT, "cache_control": {"type": "ephemeral"}}
    answer = client.messages.create(
        model=MODEL, max_tokens=8, messages=[{"role": "user", "content": [block, block]}],
        system=[{**block, "text": "Be brief."}],
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 20},
    )  # fmt: skip
    assert answer.content


@check("stop_sequences")
def _() -> None:
    answer = client.messages.create(
        model=MODEL, messages=USER, max_tokens=90, stop_sequences=["zzz", "."]
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", ".")
    assert "." not in answer.content[0].text


@check("stop_sequences, streamed")
def _() -> None:
    with client.messages.stream(
        model=MODEL, messages=USER, max_tokens=90, stop_sequences=["."]
    ) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", ".")


@check("prefill")
def _() -> None:
    begun = {"role": "assistant", "content": "Once there was a girl named"}
    answer = client.messages.create(model=MODEL, messages=[*USER, begun], max_tokens=10)
    assert answer.content[0].text
    assert not answer.content[0].text.startswith("Once there was")


@check("tools, auto", "tools")
def _() -> None:
    client.messages.create(model=MODEL, messages=USER, max_tokens=30, tools=TOOLS)


@check("tools, any", "json")
def _() -> None:
    answer = client.messages.create(
        model=MODEL, messages=USER, max_tokens=1000, tools=TOOLS,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )  # fmt: skip
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.name in ("paint", "sail")
    assert answer.stop_reason == "tool_use"


@check("tools, one, streamed", "json")
def _() -> None:
    with client.messages.stream(
        model=MODEL, messages=USER, max_tokens=1000, tools=TOOLS,
        tool_choice={"type": "tool", "name": "paint"},
    ) as stream:  # fmt: skip
        final = stream.get_final_message()
    (call,) = [block for block in final.content if block.type == "tool_use"]
    assert call.input["color"] in ("red", "blue")


@check("tools, history", "tools")
def _() -> None:
    given = {"name": "boat", "color": "red"}
    messages = [
        *USER,
        {"role": "assistant", "content": [
            {"type": "text", "text": "I paint it."},
            {"type": "tool_use", "id": "toolu_1", "name": "paint", "input": given}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "painted"}]},
    ]  # fmt: skip
    answer = client.messages.create(model=MODEL, messages=messages, max_tokens=10, tools=TOOLS)
    assert answer.content


@check("structured output", "json")
def _() -> None:
    form = {"type": "json_schema", "schema": THING}
    answer = client.messages.create(
        model=MODEL, messages=USER, max_tokens=1000, output_config={"format": form}
    )
    assert '"color"' in answer.content[0].text


@check("thinking off")
def _() -> None:
    client.messages.create(model=MODEL, messages=USER, max_tokens=8, thinking={"type": "disabled"})


@check("count_tokens")
def _() -> None:
    few = client.messages.count_tokens(model=MODEL, messages=USER).input_tokens
    many = client.messages.count_tokens(model=MODEL, messages=USER, tools=TOOLS).input_tokens
    assert 0 < few <= many


@check("models")
def _() -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@check("errors")
def _() -> None:
    for options, kind in (
        ({"model": MODEL, "max_tokens": 0}, anthropic.BadRequestError),
        ({"model": "nosuch", "max_tokens": 1}, anthropic.NotFoundError),
    ):
        found = None
        try:
            client.messages.create(messages=USER, **options)
        except kind as error:
            found = error.body["type"]
        assert found == "error", options


run()
