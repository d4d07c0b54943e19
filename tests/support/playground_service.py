"""A service with small models over real HTTP, and the playground in front of it, without Ray."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployments.echo.deployment import EchoModel
from tests.serve.user_playground_models import Letters, Listener, Painter
from tests.support.sample_models import spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig, load_model_config
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_json
from truthgpt_serve.playground.application import ENVIRONMENT
from truthgpt_serve.playground.client import ServiceClient
from truthgpt_serve.playground.running import Running
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import ModelInstance, create_asgi_app

ROOT = Path(__file__).resolve().parents[2]
START_S = 60


MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "echo": (EchoModel, {"task": "text-generation", "serving": {"engine": {}}}),
    "slow": (
        EchoModel,
        {"task": "text-generation", "serving": {"engine": {"token_interval_s": 0.1}}},
    ),
    "painter": (Painter, {"task": "image-generation"}),
    "letters": (Letters, {"task": "embedding"}),
    "listener": (Listener, {"task": "custom"}),
}


class Models:
    """All models, where Serve's proxy stands."""

    def __init__(self) -> None:
        self.hosts = {
            name: ModelInstance(spec_of(cls), load_model_config(cfg), name=name)
            for name, (cls, cfg) in MODELS.items()
        }
        self._apps: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers for the model that the path names."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        name = [*scope["path"].split("/"), "", ""][2]
        if name in self._apps:
            await self._apps[name]({**scope, "root_path": f"/models/{name}"}, receive, send)
            return
        await send_json(send, {})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        for name, host in self.hosts.items():
            await host.start()
            self._apps[name] = await create_asgi_app(host)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for host in self.hosts.values():
            await host.close()
        await send({"type": "lifespan.shutdown.complete"})


class Leaving:
    """Cancels a request whose client has left, as Serve's replicas do.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: asyncio.Queue[Any] = asyncio.Queue()
        answering = asyncio.ensure_future(self._app(scope, messages.get, send))

        async def read() -> None:
            while True:
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    answering.cancel()
                    return

        reading = asyncio.ensure_future(read())
        with suppress(asyncio.CancelledError):
            await answering
        reading.cancel()


def _state(name: str, task: str) -> ApplicationState:
    return ApplicationState(
        name=name,
        route_prefix=f"/models/{name}",
        status="RUNNING",
        message="",
        num_running_replicas=1,
        card={"task": task, "family": "echo", "adapters": []},
        deployed_at_s=time.time(),
    )


@contextmanager
def serve_models() -> Iterator[tuple[str, Models]]:
    """Yields the service's address, and its models."""
    states = {name: _state(name, cfg["task"]) for name, (_, cfg) in MODELS.items()}
    models = Models()
    with serve_asgi(Leaving(models), lifespan="on") as proxy:
        port = urlsplit(proxy).port or 0
        router = RouterApp(RouterConfig(), lambda: ServeState(states), ("127.0.0.1", port))
        with serve_asgi(Leaving(router), lifespan="on") as address:
            yield address, models


@dataclass(frozen=True)
class Pages:
    """A playground that runs in a process of its own.

    Attributes:
        url: Its address, below which `/ui` is.
        service: The service's address.
        output: What the process prints.
    """

    url: str
    service: str
    output: Path


@contextmanager
def serve_pages(files: Path, output: Path, **config: Any) -> Iterator[Pages]:
    """Serves models, and a playground for them, in a process of their own: Gradio stays there.

    Args:
        files: Folder of uploads.
        output: File for what the process prints.
        config: Limits of the playground.
    """
    ready = output.with_suffix(".ready")
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name, str(files), str(ready), json.dumps(config)]
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "GRADIO_TEMP_DIR": str(files)},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        url, service = ready.read_text().split()
        yield Pages(url, service, output)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # which ends it
        try:
            process.wait(20)
        finally:
            process.kill()


def main() -> None:
    """Serves until standard input ends."""
    from truthgpt_serve.playground.build import create_app

    files, ready = map(Path, sys.argv[1:3])
    config = PlaygroundConfig.model_validate(json.loads(sys.argv[3]))
    with serve_models() as (service, _):
        client = ServiceClient(service)
        app = create_app(config, client, Running(), files)

        async def mounted(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "root_path": "/ui"}, receive, send)

        with serve_asgi(mounted, lifespan="on") as url:
            draft = ready.with_suffix(".draft")
            draft.write_text(f"{url}\n{service}\n")
            draft.replace(ready)
            sys.stdin.read()


if __name__ == "__main__":
    main()
