"""The Open Inference Protocol's routes that the router answers itself: the server, and readiness.

Reads the directory, so asking wakes no model that is scaled to zero; relays nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    RouteNotFoundError,
    UnavailableError,
)
from truthgpt_serve.http.asgi import Send, send_json
from truthgpt_serve.http.open_inference import (
    MODEL_VERSION,
    MODELS_PREFIX,
    PREFIX,
    is_open_inference,
    model_of_path,
    server_metadata,
    split_model_path,
)
from truthgpt_serve.router.allowed import AllowedModels
from truthgpt_serve.router.discovery import RETRY_AFTER_S, ModelDirectory

METHODS = ("GET", "POST", "HEAD")
"""HEAD is answered as GET, without the body."""
Handler = Callable[[Send], Awaitable[None]]


def model_of(method: str, path: str) -> str | None:
    """Returns the model whose application has this path, or None where it is not the protocol's.

    Raises:
        RouteNotFoundError: It is the protocol's, but names no model.
        MethodError: No route of a model takes this method.
    """
    if not is_open_inference(path):
        return None
    name = model_of_path(path) if path.startswith(MODELS_PREFIX) else ""
    if not name:
        raise RouteNotFoundError(f"there is no {path} here; the routes are listed at /docs")
    if method not in METHODS:
        raise MethodError(f"{path} takes GET or POST, not {method}", allow=METHODS)
    return name


class OpenInferenceRoutes:
    """Finds the handler of a path.

    Args:
        directory: The models.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        self._directory = directory
        self._routes: dict[str, Handler] = {
            PREFIX: _server,
            f"{PREFIX}/health/live": _live,
            f"{PREFIX}/health/ready": self._ready,
        }

    def find(self, path: str, models: AllowedModels) -> Handler | None:
        """Returns the handler of `path`, or None.

        Args:
            path: The path.
            models: The models of who asks.
        """
        if path.startswith(MODELS_PREFIX):
            name, rest = split_model_path(path)
            match rest.split("/"):
                case ["", "ready"]:
                    return partial(_model_ready, models, name, MODEL_VERSION)
                case ["", "versions", version, "ready"]:
                    return partial(_model_ready, models, name, version)
        return self._routes.get(path)

    async def _ready(self, send: Send) -> None:
        states = self._directory.states()
        waiting = [state.name for state in states if state.status != "RUNNING"]
        if not self._directory.loaded:
            raise UnavailableError("the service is starting", retry_after_s=RETRY_AFTER_S)
        if waiting:
            raise UnavailableError(
                f"these models are not ready: {', '.join(waiting)}", retry_after_s=RETRY_AFTER_S
            )
        await send_json(send, {"ready": True})


async def _model_ready(models: AllowedModels, name: str, version: str, send: Send) -> None:
    """Says whether a request would be answered, at once or when the model has woken."""
    entry = await models.look_up(name)
    if entry is None:
        raise ModelNotFoundError(f"The model {name!r} does not exist", param="model")
    if version != MODEL_VERSION:
        raise ModelNotFoundError(f"the model {name!r} has version {MODEL_VERSION} only")
    if entry.error is not None:
        raise UnavailableError(entry.error, retry_after_s=RETRY_AFTER_S)
    await send_json(send, {"name": name, "ready": True})


async def _server(send: Send) -> None:
    await send_json(send, server_metadata())


async def _live(send: Send) -> None:
    await send_json(send, {"live": True})
