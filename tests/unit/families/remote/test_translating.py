"""Other APIs over the chat route of servers that lack them, with the APIs' own clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from deployments.echo.config import FAMILY
from tests.support.remote_servers import relay_to
from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_bytes, send_json
from truthgpt_serve.server import create_app

HI: Any = [{"role": "user", "content": "hello you"}]
ALL = ("/v1/messages", "/v1/messages/count_tokens", "/v1/responses")


class Upstream:
    """The echo family as an OpenAI-compatible server without some routes.

    Attributes:
        asked: The paths of all requests but those for its models.
        lacking: Which paths it does not have.
    """

    def __init__(self, lacking: tuple[str, ...] = ALL) -> None:
        self.asked: list[str] = []
        self.lacking = lacking
        self.refusal: tuple[int, Any] = (404, {"detail": "Not Found"})
        cfg = {"serving": {"engine": {"num_tokens": 3}}}
        self._app = create_app(FAMILY, cfg, name="far")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/v1/models":
            self.asked.append(scope["path"])
            if scope["path"] in self.lacking:
                status, value = self.refusal
                if isinstance(value, bytes):
                    await send_bytes(send, value, b"text/html", status=status)
                else:
                    await send_json(send, value, status=status)
                return
        await self._app(scope, receive, send)


@contextmanager
def behind(upstream: Upstream, **engine: Any) -> Iterator[str]:
    with serve_asgi(upstream, lifespan="on") as url, relay_to(f"{url}/v1", **engine) as http:
        yield str(http.base_url).rstrip("/")


def test_messages_and_responses_over_a_server_that_has_chat_only() -> None:
    upstream = Upstream()
    with behind(upstream) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        claude = anthropic.Anthropic(base_url=url, api_key="x", max_retries=0)
        with claude:
            answer = claude.messages.create(model=name, max_tokens=2, messages=HI)
            assert answer.model == name
            assert answer.content[0].type == "text"
            assert answer.content[0].text == " hello you"
            with claude.messages.stream(model=name, max_tokens=2, messages=HI) as stream:
                assert "".join(stream.text_stream) == " hello you"
            with pytest.raises(anthropic.NotFoundError):
                claude.messages.create(model="nosuch", max_tokens=2, messages=HI)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as gpt:
            response = gpt.responses.create(model=name, input="hello you", max_output_tokens=2)
            assert (response.model, response.output_text) == (name, " hello you")
    chat = "/v1/chat/completions"
    assert upstream.asked == ["/v1/messages", chat, chat, "/v1/responses", chat]


def test_what_the_server_has_is_relayed() -> None:
    upstream = Upstream(lacking=())
    with behind(upstream) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as claude:
            for _ in range(2):
                claude.messages.create(model=name, max_tokens=2, messages=HI)
    assert upstream.asked == ["/v1/messages"] * 2


UNKNOWN = {
    "error": {
        "message": "Response with id 'resp_1' not found.",
        "type": "invalid_request_error",
        "param": "response_id",
        "code": 404,
    }
}


@pytest.mark.parametrize(
    "refusal",
    [
        (404, UNKNOWN),
        (404, {"error": {**UNKNOWN["error"], "message": "x" * 70_000}}),
        (404, {"object": "error"}),
        (501, {"error": {"message": "only tools named by the model work", "type": "x"}}),
    ],
)
def test_what_else_is_not_there_is_the_server_s_answer(refusal: Any) -> None:
    upstream = Upstream(("/v1/responses",))
    upstream.refusal = refusal
    with behind(upstream) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "input": "hello you", "max_output_tokens": 2}
        answer = httpx.post(f"{url}/v1/responses", json=body)
        assert answer.status_code == (404 if refusal[0] == 404 else 400)
        if refusal[1] is UNKNOWN:
            assert answer.json()["error"]["message"] == UNKNOWN["error"]["message"]
        upstream.lacking = ()
        assert httpx.post(f"{url}/v1/responses", json=body).status_code == 200
    assert upstream.asked == ["/v1/responses"] * 2, "the route is asked for again"


@pytest.mark.parametrize(
    "refusal",
    [
        (404, b""),
        (404, b"<html><h1>404 Not Found</h1></html>"),
        (405, {"detail": "Method Not Allowed"}),
        (404, {"error": {"message": "Unknown request URL: POST /v1/responses."}}),
        (501, {"error": {"message": "The model does not support Responses API", "code": 501}}),
    ],
)
def test_a_route_that_is_not_there_in_other_words(refusal: Any) -> None:
    upstream = Upstream(("/v1/responses",))
    upstream.refusal = refusal
    with behind(upstream) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "input": "hello you", "max_output_tokens": 2}
        for _ in range(2):
            assert httpx.post(f"{url}/v1/responses", json=body).status_code == 200
    chat = "/v1/chat/completions"
    assert upstream.asked == ["/v1/responses", chat, chat], "it is asked for once"


def test_errors_of_the_server_are_worded_for_the_client() -> None:
    with behind(Upstream()) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "max_tokens": 0, "messages": HI}
        answer = httpx.post(f"{url}/v1/messages", json=body)
        assert (answer.status_code, answer.json()["type"]) == (400, "error")
        assert "max_tokens" in answer.json()["error"]["message"]
        deep: Any = []
        for _ in range(300):
            deep = [deep]
        answer = httpx.post(f"{url}/v1/messages", json={**body, "system": deep})
        assert (answer.status_code, "nested deeper" in answer.text) == (400, True)


def test_only_paths_that_the_configuration_lists() -> None:
    upstream = Upstream()
    with behind(upstream, paths=["/v1/chat/completions"]) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        body = {"model": name, "max_tokens": 1, "messages": HI}
        answer = httpx.post(f"{url}/v1/messages", json=body)
        assert (answer.status_code, upstream.asked) == (400, [])
