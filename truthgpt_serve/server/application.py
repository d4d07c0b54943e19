"""The generic ASGI application: routes, and what every answer has."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import (
    ModelNotFoundError,
    TruthGPTError,
    UnavailableError,
    UnsupportedError,
    not_here,
)
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.file_store import FILES_PATH
from truthgpt_serve.http.front import Handler, RoutedFront
from truthgpt_serve.http.json_body import encode_json, model_entry, parse_object
from truthgpt_serve.http.open_inference import MODELS_PREFIX as OPEN_MODELS_PREFIX
from truthgpt_serve.http.open_inference import is_open_inference, split_model_path
from truthgpt_serve.http.routes import refuse
from truthgpt_serve.server.audio.routes import PATH as TRANSCRIPTIONS_PATH
from truthgpt_serve.server.audio.routes import TRANSLATIONS_PATH, AudioRoutes
from truthgpt_serve.server.embeddings.routes import PATH as EMBEDDINGS_PATH
from truthgpt_serve.server.embeddings.routes import EmbeddingRoutes
from truthgpt_serve.server.encoded_bodies import EncodedBodies
from truthgpt_serve.server.execution.codec import Exchange
from truthgpt_serve.server.images.request import ROUTES
from truthgpt_serve.server.images.routes import ImageRoutes
from truthgpt_serve.server.infer.codec import InferExchange
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.over_chat.routes import TRANSLATED, OverChat
from truthgpt_serve.server.shaped_errors import ShapedErrors
from truthgpt_serve.server.text.routes import (
    DETOKENIZE_PATH,
    TOKENIZE_PATH,
    TextRoutes,
)
from truthgpt_serve.server.text_limits import TextLimits

logger = logging.getLogger(__name__)

MODELS_PATH = "/v1/models"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(
    spec: FamilySpec, cfg: dict[str, Any], *, name: str, max_body_bytes: int | None = None
) -> EncodedBodies:
    """Returns an ASGI application that serves one model by itself, without Ray.

    The model is loaded when the server starts the application and closed when it stops it.

    Args:
        spec: The family.
        cfg: The configuration as a nested dict; what is missing takes its default.
        name: The model name that clients send.
        max_body_bytes: The largest request body; by default what the configuration says.
    """
    host = ModelInstance(spec, load_model_config(cfg), name=name)
    return EncodedBodies(
        Application(host, max_body_bytes=max_body_bytes, owns_host=True),
        max_body_bytes=max_body_bytes or host.max_body_bytes,
        max_request_s=host.max_request_s,
    )


async def create_asgi_app(host: ModelInstance) -> Any:
    """Returns the application of a started model: the class's own if it makes one, else ours."""
    app = await host.own_asgi_app()
    return Application(host) if app is None else ShapedErrors(app, host.name)


class Application(RoutedFront):
    """Serves the model of a host over `/v1/infer` and, by its task, OpenAI's routes.

    Args:
        host: The model; started, unless `owns_host`.
        max_body_bytes: The largest request body; by default what the configuration says.
        owns_host: Whether the application starts and closes the host with its own life.
    """

    def __init__(
        self, host: ModelInstance, *, max_body_bytes: int | None = None, owns_host: bool = False
    ) -> None:
        super().__init__(f"the model {host.name!r}", host.label)
        self._host = host
        self._max_body_bytes = max_body_bytes or host.max_body_bytes
        self._owns_host = owns_host
        self._created = int(time.time())
        self._names = (host.name, *host.config.serving.aliases)
        self._task = host.config.task
        limits = TextLimits(host.config.serving.limits)
        self._text = TextRoutes(host, self._read, self._check_name, limits)
        self._images = ImageRoutes(host, host.files, self._max_body_bytes, self._check_name)
        self._audio = AudioRoutes(host, self._read, self._check_name)
        self._over_chat = OverChat(self.serve, self._read, limits.check, host.name)
        embeddings = EmbeddingRoutes(host, self._read, self._check_name, limits)
        self._routes: dict[str, dict[str, Handler]] = {
            "/v1/infer": {"POST": self._infer},
            "/v1/chat/completions": {"POST": self._text.chat},
            "/v1/completions": {"POST": self._text.complete},
            TOKENIZE_PATH: {"POST": self._text.tokenize},
            DETOKENIZE_PATH: {"POST": self._text.detokenize},
            **{path: {"POST": self._translated} for path in TRANSLATED},
            EMBEDDINGS_PATH: {"POST": embeddings.create},
            TRANSCRIPTIONS_PATH: {"POST": self._audio.transcribe},
            TRANSLATIONS_PATH: {"POST": self._audio.translate},
            ROUTES["generation"]: {"POST": self._images.generate},
            ROUTES["edit"]: {"POST": self._images.edit},
            ROUTES["variation"]: {"POST": self._images.vary},
            MODELS_PATH: {"GET": self._models},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
        }
        if self._task == "tensor":
            from truthgpt_serve.server.tensors.routes import (
                OipRoutes,  # needs numpy, as such a class does
            )

            self._routes |= OipRoutes(host, self._read).routes()

    async def start(self) -> None:
        """Starts the host, if it is the application's own."""
        if self._owns_host:
            await self._host.start()

    async def stop(self) -> None:
        """Closes what the routes hold, and the host if it is the application's own."""
        self._text.close()
        self._images.close()
        self._audio.close()
        if self._owns_host:
            await self._host.close()

    def find(self, connection: Connection) -> Handler:
        """Returns the handler of a request."""
        method, path = connection.scope["method"], self._by_own_name(connection.path)
        methods = self._routes.get(path)
        if methods is None and path.startswith(MODELS_PATH + "/"):
            methods = {"GET": lambda connection: self._model(connection, path)}
        elif methods is None and path.startswith(FILES_PATH):
            methods = {"GET": partial(self._images.file, file_id=path.removeprefix(FILES_PATH))}
        handler = (methods or {}).get("GET" if method == "HEAD" else method)
        if handler is None:
            raise self._refuse(method, path)
        return handler

    def _by_own_name(self, path: str) -> str:
        """Returns a path of the Open Inference Protocol with the model's own name for an alias."""
        if path.startswith(OPEN_MODELS_PREFIX):
            name, rest = split_model_path(path)
            if name in self._names:
                return f"{OPEN_MODELS_PREFIX}{self._host.name}{rest}"
        return path

    def _refuse(self, method: str, path: str) -> TruthGPTError:
        error = refuse(method, path, self._host.name)
        is_tensors = self._task == "tensor" and is_open_inference(path)
        if is_tensors and isinstance(error, UnsupportedError):  # else its routes would have it
            error = ModelNotFoundError(f"the model {self._host.name!r} has version 1 only")
        return error

    async def _read(self, connection: Connection) -> bytes:
        return await connection.read(self._max_body_bytes, self._host.max_request_s)

    async def _infer(self, connection: Connection) -> None:
        body = parse_object(await self._read(connection))
        exchange = InferExchange(body, self._host.label)
        self._check_name(exchange.model)
        exchange.name_model(self._host.name)
        await self._run(connection, exchange, stream=exchange.stream)

    async def _translated(self, connection: Connection) -> None:
        self._host.check_task("text-generation", "text routes")
        await self._over_chat.answer(connection)

    async def _run(self, connection: Connection, exchange: Exchange, *, stream: bool) -> None:
        async with connection.guard(self._host.max_request_s) as guard:
            if not stream:
                answer = await self._host.run(exchange)
                guard.release()
                await connection.reply(answer)
                return
            await self._host.stream(exchange, connection.emit)
            guard.release()
            await connection.end_events()

    def _check_name(self, model: str) -> None:
        if model not in self._names:
            raise not_here(model, self._host.name)

    def _card(self, name: str) -> dict[str, Any]:
        card = model_entry(name, self._created, self._host.name)
        if acceleration := getattr(self._host.model, "acceleration", None):
            card["acceleration"] = acceleration
        if self._task == "text-generation":
            card["capabilities"] = self._text.describe()
        return card

    async def _models(self, connection: Connection) -> None:
        data = [self._card(name) for name in self._names]
        await connection.reply(encode_json({"object": "list", "data": data}))

    async def _model(self, connection: Connection, path: str) -> None:
        name = path.removeprefix(MODELS_PATH + "/")
        self._check_name(name)
        await connection.reply(encode_json(self._card(name)))

    async def _health(self, connection: Connection) -> None:
        try:
            await self._host.check_health()
        except Exception as error:
            logger.warning("model %r is not healthy", self._host.name, exc_info=True)
            raise UnavailableError(f"the model {self._host.name!r} is not healthy") from error
        await connection.reply(encode_json({"status": "ok"}))

    async def _metrics(self, connection: Connection) -> None:
        text = self._host.metrics()
        if text is None:
            raise UnsupportedError(
                f"the model {self._host.name!r} has no metrics of its own", param="model"
            )
        await connection.reply(text.encode(), METRICS_TYPE)
