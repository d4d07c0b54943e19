"""What a client of the family `remote` gets when the second server fails, and what it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.remote_servers import (
    KEY,
    KEY_VARIABLE,
    Behavior,
    OtherServer,
    Request,
    chat_event,
    relay_to,
    relayed,
    send_events,
    send_start,
    serve_at,
)
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.asgi import Send, send_bytes

BODY = {"model": "far", "messages": []}
LABEL = "The remote server of the model 'far'"


def ask(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={**BODY, **more})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def plain(status: int, body: bytes, **headers: str) -> Behavior:
    async def behave(request: Request, send: Send) -> None:
        lines = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
        await send_bytes(send, body, b"application/json", status=status, headers=lines)

    return behave


@pytest.fixture
def no_secret_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    yield
    logged = [record.getMessage() for record in caplog.get_records("call")]
    assert any(LABEL in line for line in logged)
    assert not any(KEY in line for line in logged)


@pytest.mark.usefixtures("no_secret_is_logged")
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_the_clients(status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key: {KEY}"}}).encode()
    for settings, advice in (
        ({"api_key_env": KEY_VARIABLE}, f"check the environment variable {KEY_VARIABLE} of the "),
        ({}, "it wants one: set serving.engine.api_key_env"),
    ):
        with relayed(**settings) as (http, other):
            other.behave = plain(status, body, www_authenticate="Bearer")
            other.health_status = status
            for answer in (
                ask(http),
                http.post("/v1/infer", json={"model": "far", "inputs": {"text": "x"}}),
            ):
                assert answer.status_code == 502
                assert KEY not in answer.text
                assert "www-authenticate" not in answer.headers
                error = error_of(answer)
                assert error["code"] == "remote_key_refused"
                start = f"{LABEL} refuses the service's own key (status {status}); {advice}"
                assert error["message"].startswith(start)


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_other_errors_keep_their_status_and_message(status: int) -> None:
    body = b'{"error": {"message": "theirs" , "code": 7}}'
    with relayed() as (http, other):
        other.behave = plain(status, body, retry_after="17")
        answer = ask(http)
        assert (answer.status_code, error_of(answer)["message"]) == (status, "theirs")
        assert isinstance(error_of(answer)["code"], str | None)
        assert answer.headers["retry-after"] == "17"
        infer = http.post("/v1/infer", json={"model": "far", "inputs": {"text": "x"}})
        assert (infer.status_code, error_of(infer)["message"]) == (status, "theirs")


def test_a_redirect_is_not_followed() -> None:
    with relayed() as (http, other):
        other.behave = plain(307, b"", location="http://elsewhere.test/")
        answer = ask(http)
        assert answer.status_code == 502
        assert "redirects to another address (status 307)" in error_of(answer)["message"]
        assert "elsewhere" not in answer.text
        assert len(other.requests) == 1


@pytest.mark.usefixtures("no_secret_is_logged")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/v1", f"{LABEL} cannot be reached: connection refused"),
        ("http://nosuch.invalid/v1", f"{LABEL} cannot be found: its host name does not resolve"),
    ],
)
def test_a_server_that_is_not_there(url: str, message: str) -> None:
    with relay_to(url.format(port=free_port()), model="there", api_key_env=KEY_VARIABLE) as http:
        for _ in range(2):
            answer = ask(http)
            assert (answer.status_code, error_of(answer)["message"]) == (502, message)
        card = http.get("/v1/models/far").json()
        assert card["remote"]["status"] == "failing"


def test_slow_answers_and_slow_pieces_end() -> None:
    async def silent(request: Request, send: Send) -> None:
        if request.json().get("stream"):
            await send_start(send, "text/event-stream")
            event = chat_event("there", "one")
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(60)

    with relayed(read_timeout_s=0.3) as (http, other):
        other.behave = silent
        answer = ask(http)
        assert (answer.status_code, error_of(answer)["type"]) == (504, "timeout_error")
        assert error_of(answer)["message"] == f"{LABEL} sent nothing for 0.3 s"
        events = [json.loads(line[6:]) for line in ask(http, stream=True).text.split("\n\n")[:-1]]
        assert [event.get("model") for event in events] == ["far", None]
        assert events[1]["error"]["type"] == "timeout_error"
        assert other.left.wait(10)
    with relayed(request_timeout_s=0.3) as (http, other):
        other.behave = silent
        assert ask(http).status_code == 504
        assert '"timeout_error"' in ask(http, stream=True).text


def test_a_stream_that_is_cut_ends_with_an_error_event() -> None:
    async def cut(request: Request, send: Send) -> None:
        await send_start(send, "text/event-stream")
        for piece in (chat_event("there", "one"), b'data: {"half'):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.1)

    with relayed() as (http, other):
        other.behave = cut
        answer = ask(http, stream=True)
        first, last = answer.text.split("\n\n")[:-1]
        assert json.loads(first[6:])["choices"][0]["delta"]["content"] == "one"
        error = json.loads(last[6:])["error"]
        assert error["message"] == f"{LABEL} closed the connection before its answer was whole"
        assert error["code"] == "upstream_error"
        body = {"model": "far", "inputs": {"text": "x"}, "stream": True}
        assert '"upstream_error"' in http.post("/v1/infer", json=body).text


@pytest.mark.parametrize(
    "value",
    [
        5,
        [],
        {},
        {"choices": 5},
        {"choices": ["x"]},
        {"choices": [{"delta": "x", "message": "x"}]},
        {"choices": [], "usage": [1]},
    ],
)
def test_an_answer_of_another_form_is_the_other_servers_fault(value: Any) -> None:
    async def strange(request: Request, send: Send) -> None:
        text = json.dumps(value).encode()
        if request.json().get("stream"):
            await send_events(send, [b"data: " + text + b"\n\n"])
            return
        await send_start(send, "application/json")
        await send({"type": "http.response.body", "body": text, "more_body": False})

    with relayed() as (http, other):
        other.behave = strange
        body = {"model": "far", "inputs": {"text": "x"}}
        answer = http.post("/v1/infer", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_error")
        stream = http.post("/v1/infer", json={**body, "stream": True})
        assert "answered what cannot be read" in stream.text


def test_any_other_answer_that_is_cut_is_not_whole_for_the_client() -> None:
    async def cut(request: Request, send: Send) -> None:
        await send_start(send, "application/json")
        piece = b'{"model": "there", "data": ['
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0.1)

    with relayed() as (http, other):
        other.behave = cut
        with pytest.raises(httpx.RemoteProtocolError):
            ask(http)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask_in_front_of(handler: Handler, num_requests: int, **settings: Any) -> list[httpx.Response]:
    """Asks the family in front of a server that is written by hand, one request after the other."""

    async def main() -> list[httpx.Response]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

        def ask_all() -> list[httpx.Response]:
            with relay_to(url, model="there", health_path=None, **settings) as http:
                return [ask(http) for _ in range(num_requests)]

        async with server:
            return await asyncio.to_thread(ask_all)

    return asyncio.run(main())


@pytest.mark.usefixtures("no_secret_is_logged")
@pytest.mark.parametrize(
    "shape",
    [b"SSH-2.0-OpenSSH_9\r\n", b"%s", b"HTTP/1.1 200 OK\r\n\0%s", b"HTTP/1.1 200 OK\r\na: \0%s"],
)
def test_what_is_no_http_is_said(shape: bytes) -> None:
    """Some send back what they were sent, the key included."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"}")
        sent_back = request[request.index(b"Bearer") :]
        writer.write(shape.replace(b"%s", sent_back))
        await writer.drain()
        writer.close()

    [found] = ask_in_front_of(answer, 1, api_key_env=KEY_VARIABLE)
    assert found.status_code == 502
    assert error_of(found)["message"] == f"{LABEL} answered something that is not HTTP"


@pytest.mark.usefixtures("no_secret_is_logged")
def test_a_credential_that_comes_back_ends_here() -> None:
    with relayed(api_key_env=KEY_VARIABLE) as (http, other):
        other.behave = plain(
            200, b"{}", authorization=f"Bearer {KEY}", openai_organization="org-1", x_more="1"
        )
        answer = ask(http)
        assert answer.headers["x-more"] == "1"
        assert not {"authorization", "openai-organization"} & set(answer.headers)
        assert KEY in str(other.last.headers)


@pytest.mark.parametrize("num_answered", [0, 1])
def test_only_what_a_kept_connection_lost_is_sent_again(num_answered: int) -> None:
    """Each connection answers so many requests and closes when the next one is there."""
    num_connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        for _ in range(num_answered):
            await reader.readuntil(b"[]}")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")
            await writer.drain()
        await reader.readuntil(b"[]}")
        writer.close()

    found = ask_in_front_of(answer, 3)
    assert [answer.status_code for answer in found] == [200 if num_answered else 502] * 3
    assert num_connections == 3


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    other = OtherServer()
    with serve_at(other, ssl_keyfile=str(key), ssl_certfile=str(certificate)) as port:
        url = f"https://localhost:{port}/v1"
        with relay_to(url, model="there") as http:
            answer = ask(http)
            assert answer.status_code == 502
            expected = f"{LABEL} has a certificate that is not accepted: self-signed certificate"
            assert error_of(answer)["message"] == expected
        settings: list[dict[str, Any]] = [{"ca_file": str(certificate)}, {"verify_tls": False}]
        for engine in settings:
            with relay_to(url, **engine) as http:
                assert ask(http).json()["model"] == "far"
        assert len(other.requests) == 2
