"""Every error that HAProxy gives or passes has the form of its API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.haproxy_configuration import ray_configuration
from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.answers import answer, pages
from truthgpt_serve.cluster.haproxy.configuration import UnknownConfigurationError
from truthgpt_serve.errors import PassedError
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.http.retriable import is_unreached

TEXT = 'It is "full"\né \\ \x01'
MALFORMED = {
    "not HTTP": b"hello\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nhost: x\r\nnothing\r\n\r\n",
    "a long path": b"GET /%b HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 100_000),
    "a long header": b"GET / HTTP/1.1\r\nhost: x\r\nx: %b\r\n\r\n" % (b"a" * 100_000),
    "many headers": b"GET / HTTP/1.1\r\nhost: x\r\n%b\r\n" % (b"x: y\r\n" * 5_000),
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    "a negative length": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "an unknown encoding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: odd\r\n\r\n",
    "a target without a path": b"POST * HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"
    b"connection: close\r\n\r\n",
    "a zero byte": b"GET /\0 HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("p")) as proxy:
        yield proxy


def is_envelope(value: Any) -> bool:
    error = value["error"]
    return (
        set(error) == {"message", "type", "param", "code"}
        and bool(error["message"])
        and error["type"].endswith(("_error", "_unavailable"))
    )


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_a_request_is_answered_in_the_envelope(
    proxy: Proxy, request_bytes: bytes
) -> None:
    with proxy.connect() as client:
        received = b""
        with contextlib.suppress(ConnectionError):  # the rest of what was sent is not read
            client.sendall(request_bytes)
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(65536):
                received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert 400 <= int(head.split()[1]) < 500
    assert b"content-type: application/json" in head.lower()
    assert is_envelope(json.loads(body))


def test_pipelined_requests_are_answered_in_order(proxy: Proxy) -> None:
    one = b"GET /models/m/x HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    with proxy.connect() as client:
        client.sendall(one * 500 + last)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.count(b'{"by": "model"}') == 500
    assert received.endswith(b'{"by": "router"}')


@pytest.mark.parametrize("status", [400, 404, 405, 408, 413, 429, 500, 502, 503, 504])
def test_plain_text_becomes_the_form_of_the_api(proxy: Proxy, status: int) -> None:
    with httpx.Client(base_url=proxy.url, timeout=LIMIT_S) as client:
        plain = client.get(f"/models/m/text/{status}")
        assert plain.status_code == status
        assert is_envelope(plain.json())
        assert plain.json()["error"]["message"] == TEXT
        for api in ("/v2", "/v1/messages"):
            other = client.get(f"/models/m{api}/text/{status}")
            form = error_body(PassedError(status, TEXT), f"{api}/")
            assert (other.status_code, other.json()) == (status, form)
    if status not in (404, 405):  # the router words them by the path
        routed = error_body(PassedError(status, TEXT), "/")
        assert plain.json()["error"]["code"] == routed["error"]["code"]
    assert plain.headers["content-type"] == "application/json"
    assert plain.headers["access-control-allow-origin"] == "*"
    assert plain.headers["access-control-expose-headers"] == "retry-after"
    assert plain.headers.get("retry-after") == ("7" if status == 429 else None)


def test_its_own_pages_carry_the_id_of_the_request(tmp_path: Path) -> None:
    given = {"x-request-id": "one"}
    with running(tmp_path) as proxy:
        for path in ("/break", "/models/m/break"):
            answer = httpx.post(proxy.url + path, content=b"{}", headers=given, timeout=LIMIT_S)
            assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
            assert answer.headers.get_list("x-request-id") == ["one"]
        answer = httpx.post(f"{proxy.url}/break", content=b"{}", timeout=LIMIT_S)
        assert "x-request-id" not in answer.headers


def test_text_that_is_no_error_passes(proxy: Proxy) -> None:
    answer = httpx.get(f"{proxy.url}/models/m/text/200", timeout=LIMIT_S)
    assert (answer.text, answer.headers["content-type"]) == (TEXT, "text/plain")


def test_routers_see_what_a_model_said(proxy: Proxy) -> None:
    """They know more of the request, and put it into a form themselves."""
    with proxy.over_socket() as client:
        answer = client.get("/models/m/text/500")
    assert (answer.text, answer.headers["content-type"]) == (TEXT, "text/plain")


def test_pages_are_whole_and_in_the_envelope() -> None:
    for status, page in pages().items():
        head, _, body = page.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 %d " % status)
        assert b"access-control-allow-origin: *" in lines
        assert b"content-length: %d" % len(body) in lines
        assert is_envelope(json.loads(body))
        if status in (429, 503):
            assert any(line.startswith(b"retry-after: ") for line in lines)


def test_a_proxy_without_routes_is_starting(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A client takes 404 as final: it would drop its model."""

    def without_routes(text: str) -> str:
        return "\n".join(line for line in text.splitlines() if " is_http-" not in line) + "\n"

    with running(tmp_path_factory.mktemp("p"), without_routes) as proxy:
        for path in ("/v1/models", "/models/m/v1/chat/completions"):
            answer = httpx.post(f"{proxy.url}{path}", content=b"{}", timeout=LIMIT_S)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert is_envelope(answer.json())
            assert is_unreached(answer.headers.raw)


def test_the_page_of_ray_that_is_replaced_is_there(tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("p")
    lines = ray_configuration(folder, 8000, {"/": 8001}).read_text().splitlines()
    before = [line for line in lines if "status 404" in line or "errorfile" in line]
    assert len(before) == 4
    answer(lines, folder)
    assert not set(before) & set(lines)
    with pytest.raises(UnknownConfigurationError, match="default_backend"):
        answer(["defaults", "frontend http_frontend"], folder)
