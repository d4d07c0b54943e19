"""The Responses and Messages APIs of the generic application, with their own clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deployments.echo.config import FAMILY
from tests.support.sample_models import Base, Patient, spec_of, wait_until
from tests.support.servers import serve_asgi
from truthgpt_serve.server import create_app

HI: Any = [{"role": "user", "content": "hello you"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    cfg = {"serving": {"engine": {"num_tokens": 4}, "limits": {"max_tools": 2}}}
    with serve_asgi(create_app(FAMILY, cfg, name="echo"), lifespan="on") as url:
        yield url


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def gpt(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_message(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="echo", max_tokens=3, messages=HI, system="Be.")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "echo")
    assert answer.id.startswith("msg_")
    [block] = answer.content
    assert block.type == "text"
    assert block.text == " hello you hello"
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 3)


def test_message_events(claude: anthropic.Anthropic, url: str) -> None:
    with claude.messages.stream(model="echo", max_tokens=3, messages=HI) as stream:
        assert list(stream.text_stream) == [" hello", " you", " hello"]
        answer = stream.get_final_message()
    assert answer.stop_reason == "max_tokens"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (2, 3)

    body = {"model": "echo", "max_tokens": 1, "messages": HI, "stream": True}
    text = httpx.post(f"{url}/v1/messages", json=body).text
    events = [event.split("\n") for event in text.split("\n\n") if event]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert names == [json.loads(data.removeprefix("data: "))["type"] for _, data in events]


def test_response(gpt: openai.OpenAI) -> None:
    answer = gpt.responses.create(
        model="echo", input="hello you", max_output_tokens=3, metadata={"a": "b"}
    )
    assert answer.output_text == " hello you hello"
    assert (answer.object, answer.model, answer.status) == ("response", "echo", "incomplete")
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert (answer.max_output_tokens, answer.metadata) == (3, {"a": "b"})
    assert answer.usage is not None
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (2, 3, 5)


def test_response_events(gpt: openai.OpenAI) -> None:
    with gpt.responses.stream(model="echo", input=HI, max_output_tokens=2) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    last: Any = events[-1]
    assert [event.sequence_number for event in events] == list(range(10))
    assert last.response.output_text == " hello you"
    done: Any = events[-2]
    assert done.item.id == last.response.output[0].id == getattr(events[4], "item_id", None)


def test_a_whole_response_is_completed(gpt: openai.OpenAI) -> None:
    """`stop` is no field of this API; the class ends by itself at its own limit otherwise."""
    answer = gpt.responses.create(
        model="echo", input="hello you", extra_body={"stop": None}, instructions="Be."
    )
    assert answer.instructions == "Be."
    assert answer.output[0].type == "message"


def test_stop_sequences(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model="echo", max_tokens=9, messages=HI, stop_sequences=["you"])
    assert answer.content[0].type == "text"
    assert answer.content[0].text == " hello "
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "you")
    with claude.messages.stream(
        model="echo", max_tokens=9, messages=HI, stop_sequences=["zzz", "you"]
    ) as stream:
        answer = stream.get_final_message()
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "you")


def test_an_answer_goes_on_with_a_last_message_of_the_assistants(
    claude: anthropic.Anthropic,
) -> None:
    messages: Any = [*HI, {"role": "assistant", "content": "one two three"}]
    answer = claude.messages.create(model="echo", max_tokens=3, messages=messages)
    assert answer.content[0].type == "text"
    assert not answer.content[0].text.startswith("one")


BAD = [
    ("/v1/messages", {"messages": HI}, "max_tokens", "is required"),
    ("/v1/messages", {"messages": HI, "max_tokens": 0}, "max_tokens", "at least 1"),
    ("/v1/messages", {"messages": HI, "max_tokens": 1, "model": "x"}, "model", "does not exist"),
    ("/v1/messages", {"max_tokens": 1}, "messages", "must be a list"),
    ("/v1/messages", {"max_tokens": 1, "messages": HI, "tools": [{}] * 3}, "tools", "max_tools"),
    ("/v1/responses", {"input": HI, "max_output_tokens": 0}, "max_output_tokens", "at least 1"),
    ("/v1/responses", {"input": []}, "input", "must not be empty"),
    ("/v1/responses", {"input": "a", "tools": [{}] * 3}, "tools", "max_tools"),
    ("/v1/responses", {"input": "a", "previous_response_id": "r"}, "previous_response_id", "keeps"),
    ("/v1/responses", {"input": "a", "temperature": 9}, "temperature", "at most 2"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), BAD)
def test_errors_in_the_form_of_the_api(
    url: str, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    for stream in (False, True):
        answer = httpx.post(url + path, json={"model": "echo", **body, "stream": stream})
        assert answer.status_code == (404 if param == "model" else 400)
        value = answer.json()
        assert words in value["error"]["message"]
        if path == "/v1/messages":
            assert value["type"] == "error"
            assert param in value["error"]["message"]
            kind = "not_found_error" if param == "model" else "invalid_request_error"
            assert value["error"]["type"] == kind
        else:
            assert value["error"]["param"] == param
        assert "x-request-id" in answer.headers


class Failing(Base):
    """Fails in the middle of its answer."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise ValueError

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"text": "one"}
        raise ValueError


def test_an_answer_that_fails_on_the_way() -> None:
    with serve_asgi(create_app(spec_of(Failing), {}, name="m"), lifespan="on") as url:
        claude = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(anthropic.InternalServerError):
            claude.messages.create(model="m", max_tokens=3, messages=HI)
        with claude, claude.messages.stream(model="m", max_tokens=3, messages=HI) as stream:
            assert next(iter(stream.text_stream)) == "one"
            with pytest.raises(anthropic.APIStatusError, match="the model 'm' failed"):
                list(stream)
        gpt = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with gpt, pytest.raises(openai.APIError, match="the model 'm' failed"):
            list(gpt.responses.create(model="m", input="a", stream=True))


def test_a_model_of_another_task_has_none_of_them() -> None:
    app = create_app(spec_of(Failing), {"task": "custom"}, name="m")
    with serve_asgi(app, lifespan="on") as url:
        for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses"):
            answer = httpx.post(url + path, json={"model": "m"})
            assert (answer.status_code, "task custom" in answer.text) == (400, True)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_the_model_stops_when_the_client_leaves(path: str) -> None:
    body = {"model": "m", "max_tokens": 3, "messages": HI, "input": "a", "stream": True}
    with serve_asgi(create_app(spec_of(Patient), {}, name="m"), lifespan="on") as url:
        with httpx.stream("POST", url + path, json=body) as answer:
            assert answer.status_code == 200
            assert b"first" in next(answer.iter_raw())
            wait_until(lambda: "enter" in Patient.last.events)
        wait_until(lambda: "told" in Patient.last.events)


class Caller(Base):
    """Calls a function with the arguments that the user says, and goes on until its limit."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        said = inputs["text"].rpartition("say ")[2].splitlines()[0]
        call = f'<tool_call>{{"name": "add", "arguments": {said}'
        return {"text": call.removeprefix(inputs["text"]), "finish_reason": "length"}


@pytest.mark.parametrize(
    ("said", "found", "reason"),
    [
        ('{"city": "Oslo", "n": 12', {"city": "Oslo", "n": 12}, "max_tokens"),
        ('{"city": "Os', {}, "max_tokens"),
        ('{"a": [1, {"b": 2', {"a": [1, {"b": 2}]}, "max_tokens"),
        ('{"a": 1}}</tool_call> and more', {"a": 1}, "tool_use"),
    ],
)
def test_a_call_that_was_cut_is_what_its_events_are(said: str, found: Any, reason: str) -> None:
    tool: Any = {"name": "add", "input_schema": {"type": "object"}}
    fields: Any = {"model": "sample", "max_tokens": 9, "tools": [tool]}
    fields["messages"] = [{"role": "user", "content": f"say {said}"}]
    fields["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
    app = create_app(spec_of(Caller), {}, name="sample")
    with (
        serve_asgi(app, lifespan="on") as url,
        anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client,
    ):
        whole = client.messages.create(**fields)
        with client.messages.stream(**fields) as events:
            streamed = events.get_final_message()
    for answer in (whole, streamed):
        block: Any
        [block] = answer.content
        assert block.type == "tool_use"
        assert (block.name, block.input, answer.stop_reason) == ("add", found, reason)
