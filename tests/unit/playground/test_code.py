"""The code that the playground shows is run, and must send what the page sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_service import Answer, Service, delta, events, serve
from truthgpt_serve.playground.code import Sent, to_curl, to_javascript, to_python

KEY = "sk-secret-1"
NASTY = 'it\'s "$HOME" `id` \\ @x\n<b>é\u2028</b> ${x}'
IMAGE = {"type": "image_generation.completed", "b64_json": "AAAA", "created_at": 1, "index": 0}
ANSWERS: dict[str, Answer | Callable[[Any], Answer]] = {
    "/v1/chat/completions": Answer(pieces=events(delta("hi")), content_type="text/event-stream"),
    "/v1/images/generations": Answer(pieces=events(IMAGE), content_type="text/event-stream"),
    "/v1/embeddings": Answer({"object": "list", "data": [{"index": 0, "embedding": [1.0]}]}),
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "system", "content": NASTY}, {"role": "user", "content": "x" * 300}],
        "temperature": 0.5,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    "/v1/images/generations": {
        "model": "m",
        "prompt": NASTY,
        "n": 2,
        "steps": 5,
        "guidance_scale": 2.5,
        "negative_prompt": "a square",
        "stream": True,
        "partial_images": 3,
        "progress": True,
    },
    "/v1/embeddings": {"model": "m", "input": ["one", NASTY]},
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve(ANSWERS) as service:
        yield service


def run_curl(text: str, folder: Path, env: dict[str, str]) -> None:
    run(["bash", "-euc", text], folder, env)


def run_python(text: str, folder: Path, env: dict[str, str]) -> None:
    run([sys.executable, "-c", text], folder, env)


def run_javascript(text: str, folder: Path, env: dict[str, str]) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    (folder / "program.mjs").write_text(text, encoding="utf-8")
    run([node, "program.mjs"], folder, env)


def run(command: list[str], folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


KINDS = {
    "curl": (to_curl, run_curl),
    "python": (to_python, run_python),
    "javascript": (to_javascript, run_javascript),
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("kind", KINDS)
def test_code_sends_the_same_request(
    service: Service, tmp_path: Path, kind: str, path: str
) -> None:
    show, execute = KINDS[kind]
    text = show(Sent(f"{service.url}{path}", BODIES[path], has_key=True))
    assert KEY not in text
    service.requests.clear()
    execute(text, tmp_path, {"TRUTHGPT_API_KEY": KEY})
    (request,) = service.requests
    assert (request.method, request.path) == ("POST", path)
    assert request.headers["authorization"] == f"Bearer {KEY}"
    sent = dict(request.body)
    if path == "/v1/embeddings":
        sent.pop("encoding_format", None)  # the package's own
    assert sent == BODIES[path]


@pytest.mark.parametrize("kind", KINDS)
def test_code_needs_no_key_where_none_was_sent(kind: str) -> None:
    text = KINDS[kind][0](Sent("http://127.0.0.1:1/v1/embeddings", {"model": "m", "input": ["a"]}))
    assert "TRUTHGPT_API_KEY" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_is_sent_as_a_form(tmp_path: Path, kind: str) -> None:
    show, execute = KINDS[kind]
    name = "my 'own' rec.wav"
    (tmp_path / name).write_bytes(b"RIFF-data")
    seen: list[bytes] = []
    heads: list[dict[str, str]] = []

    with serve_form(seen, heads) as url:
        sent = Sent(f"{url}/v1/audio/transcriptions", {"model": "m", "prompt": "@a <b"}, file=name)
        execute(show(sent), tmp_path, {})
    (body,) = seen
    assert b"RIFF-data" in body
    assert b"@a <b" in body
    assert heads[0]["content-type"].startswith("multipart/form-data")


def serve_form(seen: list[bytes], heads: list[dict[str, str]]) -> Any:
    from tests.support.servers import serve_asgi

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen.append(body)
        heads.append({name.decode(): value.decode() for name, value in scope["headers"]})
        kind = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": json.dumps({"text": "hi"}).encode()})

    return serve_asgi(app)
