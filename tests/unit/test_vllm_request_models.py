"""Fields that vLLM's own request models stumble over, by its models in a FastAPI application."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("vllm")

from deployments.vllm.request_models import (  # noqa: E402
    FIELD_KINDS,
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


@pytest.mark.parametrize("name", FIELD_KINDS)
@pytest.mark.parametrize("value", [3, "x", True, 1.5, [], {}])
def test_the_field_is_named(name: str, value: Any) -> None:
    body = {"model": "x", name: value}
    if isinstance(value, FIELD_KINDS[name]):
        check_kinds("/v1/chat/completions", body)
        return
    with pytest.raises(RequestError, match=f"`{name}` must be an? (list|object), not ") as caught:
        check_kinds("/v1/completions", body)
    assert caught.value.param == name


def test_null_is_no_value_but_for_messages_of_a_chat() -> None:
    for name in FIELD_KINDS:
        check_kinds("/tokenize", {name: None})
    with pytest.raises(RequestError, match="`messages` must be a list, not null"):
        check_kinds("/v1/messages", {"messages": None})
