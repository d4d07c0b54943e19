"""What browsers, old clients and clients that compress see of the whole service."""

from __future__ import annotations

import gzip
import json
import socket
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
from backports import zstd

from tests.serve.whole_service.conftest import ALIASES, Service

LIMIT_S = 180
PAGE = "http://localhost:5173"
ASKED = {"origin": PAGE, "access-control-request-method": "POST"}
MODELS = ("tiny", "echo")


def openai_of(service: Service, url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S)


@pytest.mark.parametrize("direct", [False, True], ids=["router", "direct"])
@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_names(service: Service, alias: str, name: str, direct: bool) -> None:
    base = f"{service.cluster.url}/models/{name}" if direct else service.cluster.url
    messages: Any = [{"role": "user", "content": "one two three"}]
    with openai_of(service, f"{base}/v1") as client:
        answer = client.chat.completions.create(model=alias, messages=messages, max_tokens=3)
        assert answer.model == name
        chunks = client.chat.completions.create(
            model=alias, messages=messages, max_tokens=3, stream=True
        )
        assert {chunk.model for chunk in chunks} == {name}
        text = client.completions.create(model=alias, prompt="a", max_tokens=2)
        assert (text.model, bool(text.choices[0].text)) == (name, True)
        assert client.models.retrieve(alias).id == alias
        assert {alias, name} <= {model.id for model in client.models.list()}
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(f"{alias}/more")
    with httpx.Client(base_url=base, timeout=LIMIT_S) as http:
        for path in (alias, quote(alias, safe="")):
            assert http.get(f"/v1/models/{path}").json()["id"] == alias
        body = {"model": alias, "inputs": {"text": "a b", "max_new_tokens": 2}}
        assert http.post("/v1/infer", json=body).json()["model"] == name


def chat(model: str, **more: Any) -> bytes:
    messages = [{"role": "user", "content": "one two three"}]
    return json.dumps({"model": model, "messages": messages, "max_tokens": 4, **more}).encode()


def talk(service: Service, request: bytes) -> tuple[bytes, bytes]:
    """Returns head and body of the answer to a request after which the connection ends."""
    with socket.create_connection(("127.0.0.1", service.cluster.port), LIMIT_S) as client:
        client.sendall(request)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), body


@pytest.mark.parametrize("prefix", ["", "/models/{}"], ids=["router", "direct"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0(service: Service, prefix: str, model: str, stream: bool) -> None:
    body = chat(model, stream=stream)
    path = f"{prefix.format(model)}/v1/chat/completions"
    head, answer = talk(
        service,
        b"POST %b HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (path.encode(), len(body), body),
    )
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head
    if stream:
        assert answer.endswith(b"data: [DONE]\n\n")
        assert answer.startswith(b"data: {")
    else:
        assert json.loads(answer)["choices"]


def test_a_client_that_waits_to_be_asked_for_the_body(service: Service) -> None:
    body = chat("echo")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", service.cluster.port), LIMIT_S) as client:
        client.sendall(head)
        received = client.recv(65536)
        assert received.startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        while piece := client.recv(65536):
            received += piece
    assert b"HTTP/1.1 200 " in received


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/models", "/models/tiny/v1/chat/completions", "/nowhere"]
)
def test_preflights(service: Service, path: str) -> None:
    answer = service.http.options(path, headers=ASKED)
    assert answer.status_code == 204
    assert answer.headers.get_list("access-control-allow-origin") == [PAGE]
    other = service.http.options(path, headers={**ASKED, "origin": "https://evil.example"})
    assert other.status_code == 403


@pytest.mark.parametrize("prefix", ["", "/models/{}"], ids=["router", "direct"])
@pytest.mark.parametrize("model", MODELS)
def test_pages_may_read_every_answer(service: Service, prefix: str, model: str) -> None:
    path = f"{prefix.format(model)}/v1/chat/completions"
    for body, status in ((chat(model), 200), (chat(model, stream=True), 200), (b"{", 400)):
        for origin, allowed in ((PAGE, [PAGE]), ("https://evil.example", [])):
            headers = {"origin": origin, "content-type": "application/json"}
            answer = service.http.post(path, content=body, headers=headers)
            assert answer.status_code == status
            assert answer.headers.get_list("access-control-allow-origin") == allowed
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("prefix", ["", "/models/{}"], ids=["router", "direct"])
@pytest.mark.parametrize("model", MODELS)
def test_compressed_requests(service: Service, prefix: str, model: str) -> None:
    path = f"{prefix.format(model)}/v1/chat/completions"

    def post(content: bytes, coding: str) -> httpx.Response:
        headers = {"content-encoding": coding, "content-type": "application/json"}
        return service.http.post(path, content=content, headers=headers)

    body = chat(model)
    for coding, pack in (("gzip", gzip.compress), ("zstd", zstd.compress)):
        assert post(pack(body), coding).json()["choices"][0]["message"]["content"]
    assert post(body, "gzip").status_code == 400
    other = post(body, "br")
    assert other.status_code == 415
    assert other.headers["accept-encoding"] == "gzip, deflate, zstd"
