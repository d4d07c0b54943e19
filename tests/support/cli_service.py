"""A small service over real HTTP for tests of the command line: each path has its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from tests.support.servers import serve_asgi
from truthgpt_serve.cli import main
from truthgpt_serve.cluster.processes import read_process

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


@dataclass
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the client left before the answer's end."""


@dataclass
class Answer:
    """What a path answers: JSON, text, or pieces of a body as they come."""

    body: Any = None
    status: int = 200
    content_type: str = JSON
    pieces: Iterable[bytes] = ()
    pause_s: float = 0.0
    """Between two pieces."""

    def parts(self) -> Iterator[bytes]:
        """Yields the body."""
        if self.body is None:
            yield from self.pieces
        else:
            yield self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Answers = Mapping[str, Answer | Callable[[Request], Answer]]


@dataclass
class Service:
    """The running service and what it was asked."""

    url: str
    answers: Answers
    requests: list[Request] = field(default_factory=list)

    def env(self, **more: str) -> dict[str, str]:
        """Returns the environment in which commands find it."""
        return {"TRUTHGPT_URL": self.url, **more}


@contextmanager
def serve(answers: Answers) -> Iterator[Service]:
    """Serves these answers while the block runs; another path is a 404 with OpenAI's envelope."""
    service = Service("", answers)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path = scope["path"]
        request = Request(scope["method"], path, headers, json.loads(body) if body else None)
        service.requests.append(request)
        missing = Answer(envelope(f"there is no {path} here", "not_found"), 404)
        answer = service.answers.get(path, missing)
        answer = answer if isinstance(answer, Answer) else answer(request)
        kind = [(b"content-type", answer.content_type.encode())]
        start = {"type": "http.response.start", "status": answer.status, "headers": kind}
        await send(start)
        leaves = asyncio.ensure_future(receive())
        for part in answer.parts():
            if leaves.done():
                request.left.set()
                return
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(answer.pause_s)
        leaves.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    with serve_asgi(app) as url:
        service.url = url
        yield service


def envelope(message: str, code: str | None = None, param: str | None = None) -> Any:
    """Returns OpenAI's error envelope."""
    return {"error": {"message": message, "type": "x", "param": param, "code": code}}


def model_list(*names: str) -> Answer:
    """Returns what `/v1/models` says."""
    data = [{"id": name, "object": "model", "created": 1} for name in names]
    return Answer({"object": "list", "data": data})


def events(*values: Any, done: bool = True) -> list[bytes]:
    """Returns a stream of events, each in a piece of its own."""
    pieces = [f"data: {json.dumps(value)}\n\n".encode() for value in values]
    return [*pieces, b"data: [DONE]\n\n"] if done else pieces


def write_run(folder: Path, **more: Any) -> Path:
    """Says in a folder like `.run`, and there in `serve.json`, that this process is the service."""
    me = read_process(os.getpid())
    assert me is not None
    folder.mkdir(0o755, exist_ok=True)
    state = {"run_id": "x", "pid": me.pid, "started": me.started, "ports": [8123], **more}
    path = folder / "serve.json"
    path.write_text(json.dumps(state))
    path.chmod(0o644)
    return path


def run_cli(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None, cwd: Any = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in this process, without a terminal: a start of Python takes its time."""
    unset = dict.fromkeys(name for name in os.environ if name.startswith("TRUTHGPT_"))
    with contextlib.chdir(cwd or "."):
        result = CliRunner(catch_exceptions=False).invoke(
            main, arguments, input=stdin, env={**unset, **(env or {})}, prog_name="truthgpt"
        )
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def run_program(
    *arguments: str, stdin: str = "", env: dict[str, str] | None = None, cwd: Any = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "truthgpt_serve.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(env),
        cwd=cwd,
        check=False,
    )


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a command: that of the tests, without what users set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TRUTHGPT_")}
    return {**kept, **(more or {})}


def delta(text: str, **choice: Any) -> Any:
    """Returns an event of a streamed chat."""
    return {"choices": [{"index": 0, "delta": {"content": text}, **choice}]}
