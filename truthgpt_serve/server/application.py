"""The generic ASGI application: routes, and what every answer has."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import (
    ModelNotFoundError,
    TruthGPTError,
    UnavailableError,
    UnsupportedError,
)
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.file_store import FILES_PATH
from truthgpt_serve.http.front import Handler, RoutedFront
from truthgpt_serve.http.json_body import encode_json, model_entry
from truthgpt_serve.http.open_inference import MODELS_PREFIX as OPEN_MODELS_PREFIX
from truthgpt_serve.http.open_inference import is_open_inference, split_model_path
from truthgpt_serve.http.routes import refuse
from truthgpt_serve.server.audio.infer_count import AudioCount
from truthgpt_serve.server.audio.routes import PATH as TRANSCRIPTIONS_PATH
from truthgpt_serve.server.audio.routes import TRANSLATIONS_PATH, AudioRoutes
from truthgpt_serve.server.embeddings.routes import PATH as EMBEDDINGS_PATH
from truthgpt_serve.server.embeddings.routes import EmbeddingRoutes
from truthgpt_serve.server.encoded_bodies import EncodedBodies
from truthgpt_serve.server.images.infer_count import ImageCount
from truthgpt_serve.server.images.request import ROUTES
from truthgpt_serve.server.images.routes import ImageRoutes
from truthgpt_serve.server.infer.counts import InferCount, TextCount
from truthgpt_serve.server.infer.routes import PATH as INFER_PATH
from truthgpt_serve.server.infer.routes import InferRoute
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.over_chat.routes import TRANSLATED, OverChat
from truthgpt_serve.server.request_reader import RequestReader
from truthgpt_serve.server.shaped_errors import ShapedErrors
from truthgpt_serve.server.text.routes import (
    DETOKENIZE_PATH,
    TOKENIZE_PATH,
    TextRoutes,
)

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
    instance = ModelInstance(spec, load_model_config(cfg), name=name)
    return EncodedBodies(
        Application(instance, max_body_bytes=max_body_bytes, owns_instance=True),
        max_body_bytes=max_body_bytes or instance.max_body_bytes,
        max_request_s=instance.max_request_s,
    )


async def create_asgi_app(instance: ModelInstance) -> Any:
    """Returns the application of a started model: the class's own if it makes one, else ours."""
    app = await instance.own_asgi_app()
    return Application(instance) if app is None else ShapedErrors(app, instance.name)


class Application(RoutedFront):
    """Serves one model over `/v1/infer` and, by its task, OpenAI's routes.

    Args:
        instance: The model; started, unless `owns_instance`.
        max_body_bytes: The largest request body; by default what the configuration says.
        owns_instance: Whether the application starts and closes the model with its own life.
    """

    def __init__(
        self,
        instance: ModelInstance,
        *,
        max_body_bytes: int | None = None,
        owns_instance: bool = False,
    ) -> None:
        super().__init__(f"the model {instance.name!r}", instance.label)
        self._instance = instance
        self._owns_instance = owns_instance
        self._created = int(time.time())
        self._task = instance.config.task
        self._reader = reader = RequestReader(instance, max_body_bytes)
        self._text = TextRoutes(instance, reader)
        self._images = ImageRoutes(instance, reader)
        self._audio = AudioRoutes(instance, reader)
        self._over_chat = OverChat(
            self.serve, reader.read, reader.limits.check, instance.name, self._text.think
        )
        self._routes: dict[str, dict[str, Handler]] = {
            INFER_PATH: {
                "POST": InferRoute(instance, reader.own_name, reader.bounds, self._count_infer())
            },
            "/v1/chat/completions": {"POST": self._text.chat},
            "/v1/completions": {"POST": self._text.complete},
            TOKENIZE_PATH: {"POST": self._text.tokenize},
            DETOKENIZE_PATH: {"POST": self._text.detokenize},
            **{path: {"POST": self._translated} for path in TRANSLATED},
            EMBEDDINGS_PATH: {"POST": EmbeddingRoutes(instance, reader).create},
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

            self._routes |= OipRoutes(instance, reader).routes()

    async def start(self) -> None:
        """Starts the model, if it is the application's own."""
        if self._owns_instance:
            await self._instance.start()

    async def stop(self) -> None:
        """Closes what the routes hold, and the model if it is the application's own."""
        self._text.close()
        self._images.close()
        self._audio.close()
        if self._owns_instance:
            await self._instance.close()

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
            if name in self._reader.names:
                return f"{OPEN_MODELS_PREFIX}{self._instance.name}{rest}"
        return path

    def _refuse(self, method: str, path: str) -> TruthGPTError:
        error = refuse(method, path, self._instance.name)
        is_tensors = self._task == "tensor" and is_open_inference(path)
        if is_tensors and isinstance(error, UnsupportedError):  # else its routes would have it
            error = ModelNotFoundError(f"the model {self._instance.name!r} has version 1 only")
        return error

    def _count_infer(self) -> Callable[[], InferCount]:
        """Returns what counts a request over `/v1/infer`."""
        if self._task == "image-generation":
            return lambda: ImageCount(self._instance.model)
        if self._task in ("text-generation", "embedding"):
            return lambda: TextCount(self._text.tokenizer.count)
        return lambda: AudioCount(self._instance.model)

    async def _translated(self, connection: Connection) -> None:
        self._instance.check_task("text-generation", "text routes")
        await self._over_chat.answer(connection)

    def _card(self, name: str) -> dict[str, Any]:
        card = model_entry(name, self._created, self._instance.name)
        if acceleration := getattr(self._instance.model, "acceleration", None):
            card["acceleration"] = acceleration
        if self._task == "text-generation":
            card["capabilities"] = self._text.describe()
        return card

    async def _models(self, connection: Connection) -> None:
        data = [self._card(name) for name in self._reader.names]
        await connection.reply(encode_json({"object": "list", "data": data}))

    async def _model(self, connection: Connection, path: str) -> None:
        name = path.removeprefix(MODELS_PATH + "/")
        self._reader.own_name(name)
        await connection.reply(encode_json(self._card(name)))

    async def _health(self, connection: Connection) -> None:
        try:
            await self._instance.check_health()
        except Exception as error:
            logger.warning("model %r is not healthy", self._instance.name, exc_info=True)
            raise UnavailableError(f"the model {self._instance.name!r} is not healthy") from error
        await connection.reply(encode_json({"status": "ok"}))

    async def _metrics(self, connection: Connection) -> None:
        text = await self._instance.metrics()
        if text is None:
            raise UnsupportedError(
                f"the model {self._instance.name!r} has no metrics of its own", param="model"
            )
        await connection.reply(text.encode(), METRICS_TYPE)
