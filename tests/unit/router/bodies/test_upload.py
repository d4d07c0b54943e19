"""Bodies that never come: the router and the generic application give up on them in time."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.state import ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import RequestError
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.bodies import arrivals, request_body
from truthgpt_serve.router.bodies.model_field import JsonModelScanner, model_of_json
from truthgpt_serve.server import create_app


class Plain:
    def load(self, cfg: dict[str, Any]) -> None:
        pass

    def infer(self, inputs: dict[str, Any]) -> Any:
        return len(inputs)


def router() -> Any:
    return RouterApp(RouterConfig(request_timeout_s=1), ServeState, ("127.0.0.1", 1))


def generic() -> Any:
    spec = FamilySpec(name="m", class_path="tests:Plain", model_class=Plain)
    cfg = {"task": "custom", "serving": {"max_request_s": 1}}
    return create_app(spec, cfg, name="m")


@pytest.mark.parametrize("begin", [b"", b'{"model"'])
@pytest.mark.parametrize("create", [router, generic])
def test_a_body_that_does_not_come_ends_in_408(create: Any, begin: bytes) -> None:
    with serve_asgi(create(), lifespan="on") as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=5) as client:
            client.sendall(
                b"POST /v1/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
                b"content-length: 99\r\n\r\n"
            )
            client.sendall(begin)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["message"] == "the request body did not arrive within 1 s"
    assert error["code"] == "request_timeout"


@pytest.mark.parametrize("begin", [b"", b'{"model"'])
def test_a_body_that_stops_ends_long_before_the_time_of_the_request(
    begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (request_body, arrivals):
        monkeypatch.setattr(module, "STALL_S", 1)
    application = RouterApp(RouterConfig(), ServeState, ("127.0.0.1", 1))
    head = b"POST /v1/infer HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99\r\n\r\n"
    with serve_asgi(application, lifespan="on") as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), timeout=20) as client:
            client.sendall(head + begin)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"no data of the request body arrived for 1 s" in answer


def test_deep_nesting_is_the_requests_fault() -> None:
    nested = b"[" * 30_000 + b"]" * 30_000
    with pytest.raises(RequestError, match="nested too deeply"):
        model_of_json(b'{"a": ' + nested + b', "model": "m"}')
    body = b'{"model": "m", "inputs": {"a": ' + b"[" * 300 + b"]" * 300 + b"}}"
    with serve_asgi(generic(), lifespan="on") as url:
        response = httpx.post(f"{url}/v1/infer", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "`inputs` is nested too deeply"


def test_an_empty_piece_is_not_the_end() -> None:
    scanner = JsonModelScanner()
    assert scanner.feed(b'{"a": 1') is None
    assert scanner.feed(b"") is None
    assert scanner.feed(b', "model": "m"') == "m"


def test_messages_repeat_nothing_of_a_body_that_is_no_text() -> None:
    secret = b'{"a": "secret", "model": "secret \xff"}'
    scanner = JsonModelScanner()
    assert scanner.feed(secret) is None
    with pytest.raises(RequestError, match="not valid JSON") as caught:
        scanner.finish([secret])
    assert "secret" not in str(caught.value)
