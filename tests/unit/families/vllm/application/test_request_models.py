"""Fields that vLLM's own request models stumble over, by its models in a FastAPI application."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("vllm")

from deployments.vllm.application.request_models import (  # noqa: E402
    Fields,
    check_kinds,
    refuse_misread_fields,
)
from truthgpt_serve.errors import RequestError  # noqa: E402


@pytest.fixture
def app() -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    app = fastapi.FastAPI()

    async def chat(request: ChatCompletionRequest) -> dict[str, bool]:
        if request.user == "raise":
            raise AttributeError("of the handler's own")
        return {"ok": True}

    chat.__annotations__["request"] = ChatCompletionRequest  # the text of it names nothing here
    app.post("/v1/chat/completions")(chat)
    refuse_misread_fields(app)
    return app


async def post(app: Any, **fields: Any) -> httpx.Response:
    body = {"model": "x", "messages": [{"role": "user", "content": "Hi"}], **fields}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("value", [5, "x", [1]])
async def test_a_field_of_another_type_is_400(app: Any, value: Any) -> None:
    answer = await post(app, structured_outputs=value)
    assert 400 <= answer.status_code < 500, answer.text


async def test_it_is_openais_error(app: Any) -> None:
    error = (await post(app, structured_outputs=5)).json()["error"]
    assert error["type"] == "invalid_request_error"
    assert "another type" in error["message"]
    assert "object has no" not in error["message"]


async def test_other_errors_pass(app: Any) -> None:
    assert (await post(app)).json() == {"ok": True}
    assert (await post(app, user="raise")).status_code == 500


@pytest.mark.parametrize("name", Fields.model_fields)
@pytest.mark.parametrize("value", [3, "x", True, 1.5, [], {}])
def test_the_field_is_named(name: str, value: Any) -> None:
    body = {"model": "x", name: value}
    if isinstance(value, list if name in ("messages", "tools") else dict):
        check_kinds("/tokenize", body)
        return
    with pytest.raises(RequestError, match=f"`{name}` must be an? (list|object), not ") as caught:
        check_kinds("/v1/completions", body)
    assert caught.value.param == name


PARTS = [
    ({"type": "input_audio", "input_audio": "AAA"}, "input_audio", "an object, not 'AAA'"),
    ({"type": "input_audio", "input_audio": [None]}, "input_audio", "an object, not a list"),
    ({"type": "image_url", "image_url": 5}, "image_url", "an object or a string, not 5"),
    ({"type": "video_url", "video_url": {"url": []}}, "video_url.url", "a string, not a list"),
    ({"type": "input_audio", "input_audio": {"data": 5}}, "input_audio.data", "a string, not 5"),
    ({"type": "audio_url", "audio_url": True}, "audio_url", "an object or a string, not true"),
]


@pytest.mark.parametrize(("part", "name", "message"), PARTS)
def test_a_part_of_a_message_is_named(part: Any, name: str, message: str) -> None:
    conversation = [{"role": "tool", "content": ["x", {"type": "text", "text": "x"}, part]}]
    for messages, place in ((conversation, "messages[0]"), ([[], conversation], "messages[1][0]")):
        with pytest.raises(RequestError) as caught:
            check_kinds("/tokenize", {"messages": messages})
        assert caught.value.param == f"{place}.content[2].{name}"
        assert caught.value.message.endswith(f" must be {message}")


def test_parts_that_may_be_there() -> None:
    good = [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "image_url", "image_url": "data:,", "uuid": "1"},
        {"type": "image_url", "image_url": None, "uuid": "1"},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "text", "text": 5},
    ]
    for messages in ([{"role": "user", "content": good}], [None, 5, {"content": 5}], None):
        check_kinds("/tokenize", {"messages": messages})


CHAT = "/v1/chat/completions"
FUNCTION = {"name": "f", "arguments": "{}"}
CALL = {"id": "a", "type": "function", "function": FUNCTION}
LISTS = [
    ({"content": ["a"]}, "content[0]", "must be an object, not 'a'"),
    ({"content": [{"type": "text", "text": 5}]}, "content[0].text", "must be a string, not 5"),
    ({"content": [{"text": "a"}]}, "content[0].type", "is required"),
    ({"content": [{"type": "x"}]}, "content[0].type", "must be one of text, not 'x'"),
    ({"role": "system", "content": [None]}, "content[0]", "must be an object, not null"),
    (
        {"tool_calls": [CALL, {**CALL, "id": None}]},
        "tool_calls[1].id",
        "must be a string, not null",
    ),
    ({"tool_calls": [{"id": "a"}]}, "tool_calls[0].type", "is required"),
    ({"tool_calls": [5]}, "tool_calls[0]", "must be an object, not 5"),
    (
        {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
        "tool_calls[0].function.arguments",
        "must be a string, not an object",
    ),
]
"""Fields of a message that vLLM refuses, as it does here, by the item of a list alone."""


async def rendered(app: Any, message: dict[str, Any]) -> httpx.Response:
    """Sends a message to vLLM's model, whose lists are then read as its renderer reads them."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    async def read(request: ChatCompletionRequest) -> Any:
        (message,) = request.messages
        try:
            return [list(message.get(name) or ()) for name in ("content", "tool_calls")]
        except ValueError as error:
            return fastapi.responses.JSONResponse(str(error), 400)

    read.__annotations__["request"] = ChatCompletionRequest
    app.post("/read")(read)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.post("/read", json={"messages": [message]})


@pytest.mark.parametrize(("fields", "name", "message"), LISTS)
async def test_an_item_of_a_list_is_named_with_its_message(
    app: Any, fields: dict[str, Any], name: str, message: str
) -> None:
    odd = {"role": "assistant", **fields}
    fine = {"role": "assistant", "tool_calls": [CALL]}
    refused = await rendered(app, odd)
    assert refused.status_code in (400, 422)
    assert "messages" not in refused.text
    for path, messages, place in (
        (CHAT, [fine, odd], "messages[1]"),
        ("/tokenize", [fine, odd], "messages[1]"),
        (f"{CHAT}/batch", [[fine], [fine, fine, odd]], "messages[1][2]"),
    ):
        with pytest.raises(RequestError) as caught:
            check_kinds(path, {"messages": messages})
        assert caught.value.param == f"{place}.{name}"
        assert caught.value.message == f"`{place}.{name}` {message}"


@pytest.mark.parametrize(
    "fields",
    [
        {"content": ["a", {"type": "text", "text": "b"}]},
        {"content": [{"type": "text", "text": 5}, {"type": "text", "text": "b"}]},
        {"role": "other", "content": ["a"]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
        {"role": "user", "content": [{"image_url": "x"}]},
        {"role": "user", "content": "a", "tool_calls": [5]},
        {"tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "f", "input": "x"}}]},
    ],
)
async def test_what_vllm_takes_in_lists_passes(app: Any, fields: dict[str, Any]) -> None:
    message = {"role": "assistant", **fields}
    assert (await rendered(app, message)).status_code == 200
    for path in (CHAT, "/tokenize"):
        check_kinds(path, {"messages": [message]})


def test_what_vllm_names_itself_is_left_to_it() -> None:
    for fields in ({"tool_calls": 5}, {"content": ["a"], "tool_calls": 5}, {"role": 5}):
        check_kinds(CHAT, {"messages": [{"role": "assistant", **fields}]})
    check_kinds(f"{CHAT}/batch", {"messages": [[[{"content": ["a"]}], 5], 5]})


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}
NO_KIND = "must have one of json, json_object, regex, choice, grammar, structural_tag"
MISSING = [
    ({"response_format": SCHEMA}, "response_format.json_schema.schema", "is required"),
    (
        {"response_format": SCHEMA, "structured_outputs": {"json": {}}},
        "response_format.json_schema.schema",
        "is required",
    ),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "is required where `response_format.type` is json_schema",
    ),
    ({"structured_outputs": {}}, "structured_outputs", NO_KIND),
    ({"structured_outputs": {"json": None}}, "structured_outputs", NO_KIND),
]


def sampling_params(body: dict[str, Any]) -> Any:
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    return CompletionRequest.model_validate({"prompt": "x", **body}).to_sampling_params(8, {})


@pytest.mark.parametrize("path", [CHAT, f"{CHAT}/batch", "/v1/completions"])
@pytest.mark.parametrize(("body", "param", "message"), MISSING)
def test_what_should_bind_an_answer_is_there(
    path: str, body: dict[str, Any], param: str, message: str
) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=r"none are specified|must be provided"):
        sampling_params(body)
    with pytest.raises(RequestError) as caught:
        check_kinds(path, body)
    assert (caught.value.param, caught.value.message) == (param, f"`{param}` {message}")


def test_one_kind_of_constraint_binds_an_answer() -> None:
    from vllm.exceptions import VLLMValidationError

    body = {"structured_outputs": {"grammar": "a", "json": {}, "json_object": False}}
    with pytest.raises(VLLMValidationError, match="multiple are specified"):
        sampling_params(body)
    message = "must have one kind of constraint, not json and json_object and grammar"
    with pytest.raises(RequestError, match=message) as caught:
        check_kinds("/v1/responses", body)
    assert caught.value.param == "structured_outputs"


@pytest.mark.parametrize(
    "body",
    [
        {"structured_outputs": {"json_object": False}},
        {"structured_outputs": {"regex": "a"}, "response_format": SCHEMA},
        {"response_format": {**SCHEMA, "json_schema": {"name": "x", "schema": {}}}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_binds_an_answer_passes(body: dict[str, Any]) -> None:
    assert sampling_params(body).structured_outputs is not None
    check_kinds("/v1/completions", body)


def test_where_nothing_binds_answers_the_fields_are_unread() -> None:
    check_kinds("/v1/embeddings", {"response_format": SCHEMA, "structured_outputs": {}})
    check_kinds("/v1/responses", {"response_format": SCHEMA})
    check_kinds(CHAT, {"response_format": SCHEMA, "use_beam_search": True})
    with pytest.raises(RequestError, match=NO_KIND):
        check_kinds("/v1/responses", {"structured_outputs": {}})


async def test_what_reading_messages_stumbles_over_is_400(app: Any) -> None:
    from vllm.renderers.chat_utils import AsyncMultiModalContentParser

    async def stumble() -> None:
        AsyncMultiModalContentParser.parse_input_audio(None, "AAA")

    app.post("/stumble")(stumble)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/stumble")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, None)


def test_null_is_no_value_but_for_messages_of_a_chat() -> None:
    for name in Fields.model_fields:
        check_kinds("/tokenize", {name: None})
    with pytest.raises(RequestError, match="`messages` must be a list, not null"):
        check_kinds("/v1/messages", {"messages": None})
