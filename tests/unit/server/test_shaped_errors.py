"""The connection to an application of a user's class outlives the requests that it fails."""

from __future__ import annotations

import http.client
import logging
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.support.servers import serve_asgi
from truthgpt_serve.http.asgi import Receive, Scope, Send
from truthgpt_serve.server.shaped_errors import ShapedErrors


async def crash(request: Request) -> PlainTextResponse:
    raise KeyError("secret")


async def fine(request: Request) -> PlainTextResponse:
    return PlainTextResponse("fine")


async def broken(request: Request) -> StreamingResponse:
    async def pieces() -> Any:
        yield b"one"
        raise KeyError("secret")

    return StreamingResponse(pieces())


APP = Starlette(routes=[Route("/crash", crash), Route("/fine", fine), Route("/broken", broken)])


async def never_answers(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("secret")


def test_a_crash_that_was_answered_leaves_the_connection_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve_asgi(ShapedErrors(APP, "own")) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        connection.connect()
        used = connection.sock
        with caplog.at_level(logging.ERROR):
            for path, status in [("/crash", 500), ("/fine", 200), ("/crash", 500), ("/fine", 200)]:
                connection.request("GET", path)
                answer = connection.getresponse()
                assert (answer.status, b"secret" in answer.read()) == (status, False)
                assert connection.sock is used
        connection.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the application of model 'own' failed"
    ] * 2


@pytest.mark.parametrize(("app", "path"), [(APP, "/broken"), (never_answers, "/")])
def test_a_crash_before_the_end_is_the_servers_matter(app: Any, path: str) -> None:
    with serve_asgi(ShapedErrors(app, "own")) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
        connection.request("GET", path)
        answer = connection.getresponse()
        if path == "/broken":
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        else:
            assert answer.status == 500
        connection.close()
