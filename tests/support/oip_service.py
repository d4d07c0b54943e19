"""Tensor models behind their own address and behind the router, without Ray; knows no test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy

from tests.support.sample_models import spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import create_app

MAX_BODY_BYTES = 4 * 2**20


class Mirror:
    """Returns its inputs; knows nothing of protocols, and declares nothing."""

    def load(self, cfg: dict[str, Any]) -> None:
        """Has no weights."""

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(inputs)


class Scaler:
    """Multiplies; says what it takes, one parameter included, and does what `mode` says."""

    request_parameters = ("factor",)

    def load(self, cfg: dict[str, Any]) -> None:
        """Has no weights."""

    def pause(self) -> float:
        time.sleep(0.6)
        return 1.0

    def metadata(self) -> dict[str, Any]:
        axes = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("x", "y")]
        return {"platform": "numpy", "inputs": axes[:1], "outputs": axes[1:]}

    def infer(self, inputs: dict[str, Any]) -> Any:
        factor = inputs.get("factor", 2)
        if factor == "refuse":
            raise UnsupportedError("`factor` is no number")
        outcomes: dict[Any, Any] = {
            "fail": lambda: inputs["secret-key"],
            "list": lambda: [1.0],
            "complex": lambda: {"y": numpy.array([1j])},
            "ragged": lambda: {"y": [[1], [1, 2]]},
            "objects": lambda: {"y": numpy.array([{}], dtype=object)},
            "nan": lambda: {"y": numpy.array([numpy.nan], numpy.float32)},
            "bytes": lambda: {"y": numpy.array([b"\xff"], dtype=object)},
            "other": lambda: {"z": inputs["x"]},
            "slow": lambda: {"y": inputs["x"] * self.pause()},
        }
        if factor in outcomes:
            return outcomes[factor]()
        inputs["x"] *= factor  # in place: the arrays are the class's own
        return {"y": inputs["x"]}


Specs = dict[str, tuple[FamilySpec, dict[str, Any]]]
PLAIN: Specs = {
    "mirror": (spec_of(Mirror), {"task": "tensor"}),
    "scaler": (spec_of(Scaler), {"task": "tensor"}),
    "text": (spec_of(Mirror), {"task": "text-generation"}),
}


class Mounted:
    """Stands where Serve's proxy stands: each application below /models, one for each model."""

    def __init__(self, specs: Specs, max_body_bytes: int) -> None:
        self._apps: dict[str, Any] = {
            name: create_app(spec, cfg, name=name, max_body_bytes=max_body_bytes)
            for name, (spec, cfg) in specs.items()
        }
        self.requests: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["path"] == "/-/routes":
            await _answer(send, 200, b"{}")
        elif scope["path"].endswith("/versions/overloaded"):
            await _answer(send, 429, b"Request dropped", [(b"retry-after", b"7")])
        else:
            self.requests.append(scope)
            name = scope["path"].split("/")[2]
            await self._apps[name]({**scope, "root_path": f"/models/{name}"}, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        """Passes the server's start and end on to each application."""
        await receive()
        queues = {name: asyncio.Queue[Any]() for name in self._apps}
        started = asyncio.Semaphore(0)

        async def note(message: Any) -> None:
            assert message["type"] != "lifespan.startup.failed", message
            started.release()

        tasks = [
            asyncio.create_task(app({"type": "lifespan"}, queues[name].get, note))
            for name, app in self._apps.items()
        ]
        for event in ("startup", "shutdown"):
            for queue in queues.values():
                queue.put_nowait({"type": f"lifespan.{event}"})
            for _ in queues:
                await started.acquire()
            await send({"type": f"lifespan.{event}.complete"})
            if event == "startup":
                await receive()
        await asyncio.gather(*tasks)


async def _answer(send: Any, status: int, body: bytes, extra: Any = ()) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body)), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _state(name: str, card: dict[str, Any]) -> ApplicationState:
    running = name != "starting"
    return ApplicationState(
        name=name,
        route_prefix=f"/models/{name}",
        status="RUNNING" if running else "DEPLOYING",
        message="",
        num_running_replicas=int(running),
        card=card,
        deployed_at_s=0.0,
    )


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        router: The router's address.
        proxy: The address below which each model has /models/<name>.
        mounted: What stands at it.
    """

    router: str
    proxy: str
    mounted: Mounted

    def bases(self, name: str) -> list[str]:
        """Returns the two addresses of a model: through the router, and its own."""
        return [self.router, f"{self.proxy}/models/{name}"]


@contextmanager
def serving(
    specs: Specs, *, max_body_bytes: int = MAX_BODY_BYTES, starting: bool = False
) -> Iterator[Service]:
    """Serves the models, and with `starting` one more that never comes up."""
    cards = {
        name: {"task": cfg.get("task", ""), "family": spec.name}
        for name, (spec, cfg) in specs.items()
    }
    cards |= {"starting": {}} if starting else {}
    state = ServeState({name: _state(name, card) for name, card in cards.items()})
    config = RouterConfig(max_body_bytes=2 * max_body_bytes)
    mounted = Mounted(specs, max_body_bytes)
    with serve_asgi(mounted, lifespan="on") as proxy:
        port = urlsplit(proxy).port or 0
        router = RouterApp(config, lambda: state, ("127.0.0.1", port))
        with serve_asgi(router, lifespan="on") as address:
            yield Service(address, proxy, mounted)
