"""Every route that exists anywhere in the service, and the one rule for what a path means.

A path that is not here does not exist (404); one that is here and that a model does not have is
something that this model cannot do (400); another method than a route's is 405. Applications of
models that relay to servers of their own, or that a user wrote, may have further paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from truthgpt_serve.errors import (
    MethodError,
    RouteNotFoundError,
    TruthGPTError,
    UnsupportedError,
    not_here,
)
from truthgpt_serve.http.open_inference import MODELS_PREFIX, model_of_path, split_model_path

CARDS_PREFIX = "/v1/models/"
_TEXT = "models that generate text"
_POOLING = "embedding, ranking and classifying models"
_EMBEDDING = "embedding models"
_RANKING = "embedding and ranking models"
_CLASSIFYING = "classifying and ranking models"
_IMAGES = "image models"
_SPEECH = "speech models"
_TENSORS = "models of the task tensor"


@dataclass(frozen=True)
class Route:
    """One route.

    Attributes:
        path: Its path below the address; a part in braces stands for any one segment, or for the
            name of a model, which may have slashes.
        methods: What it takes, without HEAD.
        summary: One line for `/docs`.
        models: Which models can have it, for messages; empty for what every model has.
        addresses: `service` for the one address, `model` for `/models/<name>`.
    """

    path: str
    methods: tuple[str, ...]
    summary: str
    models: str = ""
    addresses: tuple[str, ...] = ("service", "model")

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The segments of the path."""
        return tuple(self.path.split("/"))

    @cached_property
    def allow(self) -> tuple[str, ...]:
        """The methods for the header `Allow`."""
        return (*self.methods, "HEAD") if "GET" in self.methods else self.methods

    def matches(self, parts: list[str]) -> bool:
        """Returns whether the segments of a path are this route's."""
        return len(parts) == len(self.parts) and all(
            bool(given) if own[:1] == "{" else given == own
            for own, given in zip(self.parts, parts, strict=True)
        )


def _get(path: str, summary: str, models: str = "", *addresses: str) -> Route:
    return Route(path, ("GET",), summary, models, addresses or ("service", "model"))


def _post(path: str, summary: str, models: str = "", *addresses: str) -> Route:
    return Route(path, ("POST",), summary, models, addresses or ("service", "model"))


ROUTES: tuple[Route, ...] = (
    _get("/v1/models", "All models and adapters"),
    _get("/v1/models/{id}", "One model, its card, and its backend"),
    _post("/v1/chat/completions", "Chat; server-sent events with `stream`", _TEXT),
    _post("/v1/chat/completions/batch", "Several chats at once", _TEXT),
    _post("/v1/completions", "Text completion; server-sent events with `stream`", _TEXT),
    _post("/v1/responses", "OpenAI Responses API; server-sent events with `stream`", _TEXT),
    _get("/v1/responses/{id}", "A stored response", _TEXT, "model"),
    _post("/v1/responses/{id}/cancel", "Ends a response in the background", _TEXT, "model"),
    _post("/v1/messages", "Anthropic Messages API; server-sent events with `stream`", _TEXT),
    _post("/v1/messages/count_tokens", "Tokens of a request for `/v1/messages`", _TEXT),
    _post("/v1/embeddings", "Embeddings, where the model's engine has them", _EMBEDDING),
    _post("/v1/rerank", "Documents by their relevance, where the engine has it", _RANKING),
    _post("/rerank", "The same as `/v1/rerank`", _RANKING),
    _post("/v1/score", "How well texts fit together, where the engine has it", _RANKING),
    _post("/score", "The same as `/v1/score`", _RANKING),
    _post("/pooling", "What an engine's pooling layer gives", _POOLING),
    _post("/classify", "Classes of texts, where the engine has it", _CLASSIFYING),
    _post("/tokenize", "Tokens of a text or a chat, where the model has a tokenizer", _TEXT),
    _post("/detokenize", "The text of tokens, where the model has a tokenizer", _TEXT),
    _post("/v1/audio/transcriptions", "Speech to text, whole or with times", _SPEECH),
    _post("/v1/audio/translations", "Speech to English text, whole or with times", _SPEECH),
    _post(
        "/v1/images/generations", "Images from a text; server-sent events with `stream`", _IMAGES
    ),
    _post("/v1/images/edits", "Images from images and a text, with a mask or without", _IMAGES),
    _post("/v1/images/variations", "Images like a given one", _IMAGES),
    _get("/v1/files/images/{id}", "An image that an answer named by its address", _IMAGES),
    _post("/v1/infer", "Any family: {model, inputs} to {model, outputs}"),
    _get("/v2", "Open Inference Protocol: the server and its extensions", _TENSORS),
    _get("/v2/health/live", "Whether the router lives", _TENSORS),
    _get("/v2/health/ready", "Whether every model is running", _TENSORS),
    _get("/v2/models/{id}", "A tensor model's inputs and outputs", _TENSORS),
    _get("/v2/models/{id}/ready", "Whether a model answers", _TENSORS),
    _post("/v2/models/{id}/infer", "Tensors to tensors, as JSON or as bytes", _TENSORS),
    _get("/v2/models/{id}/versions/{version}", "The same as without the version", _TENSORS),
    _get("/v2/models/{id}/versions/{version}/ready", "The same as without the version", _TENSORS),
    _post("/v2/models/{id}/versions/{version}/infer", "The same as without the version", _TENSORS),
    _get("/v1/usage", "What the API keys used, for one that may read it", "", "service"),
    _get("/health", "Whether the router lives"),
    _get("/ready", "Whether every model is running", "", "service"),
    _get("/metrics", "Prometheus metrics of this node"),
    _get("/openapi.json", "All of this as OpenAPI 3.1", "", "service"),
    _get("/docs", "All of this as a page", "", "service"),
    _get("/", "Leads to the playground at `/ui` where it runs, else to `/docs`", "", "service"),
)


_NO_IDS = ("/v1/responses/input_tokens", "/v1/responses/compact")
"""Routes of OpenAI's that do not exist here; their last words are no ids of responses."""


def find_routes(path: str, address: str) -> list[Route]:
    """Returns the routes that have a path; there are two where methods differ.

    Args:
        path: The path, below the mount point.
        address: `service` for the one address, `model` for a model's own.
    """
    if path in _NO_IDS:
        return []
    found = _BY_PATH.get(path)
    if found is None:
        parts = _short_name(path).split("/", maxsplit=_MOST_PARTS)
        found = [route for route in _PATTERNS if route.matches(parts)]
    return [route for route in found if address in route.addresses]


def _short_name(path: str) -> str:
    """Returns a path with its model's name, which may have slashes, as one segment."""
    if path.startswith(CARDS_PREFIX):
        return path[: len(CARDS_PREFIX)] + path[len(CARDS_PREFIX) :].replace("/", "-")
    if path.startswith(MODELS_PREFIX):
        name, rest = split_model_path(path)
        return f"{MODELS_PREFIX}{name.replace('/', '-')}{rest}"
    return path


def find_error(method: str, path: str, address: str) -> RouteNotFoundError | MethodError | None:
    """Returns why a request is for no route at all, or None where there is one.

    Args:
        method: The request's method.
        path: Its path, below the mount point.
        address: As for `find_routes`.
    """
    found = find_routes(path, address)
    if not found:
        where = "/docs lists the routes"
        if address == "service" and find_routes(path, "model"):
            where = "a model has it at its own address, /models/<name>"
        return RouteNotFoundError(f"there is no {shown_path(path)} here; {where}")
    allow = tuple(dict.fromkeys(verb for route in found for verb in route.allow))
    if method in allow:
        return None
    methods = dict.fromkeys(verb for route in found for verb in route.methods)
    return MethodError(f"{path} takes {' or '.join(methods)}, not {method[:40]}", allow=allow)


def refuse(method: str, path: str, model: str) -> TruthGPTError:
    """Returns the error for a method and path that a model's application does not have.

    Args:
        method: The request's method.
        path: Its path, below the mount point.
        model: The model name.
    """
    if (error := find_error(method, path, "model")) is not None:
        return error
    if path.startswith(MODELS_PREFIX) and (name := model_of_path(path)) != model:
        return not_here(name, model)
    kinds = [route.models for route in find_routes(path, "model") if route.models]
    what = f": it is for {kinds[0]}" if kinds else ""
    return UnsupportedError(
        f"the model {model!r} cannot answer {method} {path}{what}", param="model"
    )


def shown_path(path: str) -> str:
    """Shows a path in a message without repeating a long one."""
    return path if len(path) <= 200 else f"{path[:200]}…"


_MOST_PARTS = max(len(route.parts) for route in ROUTES) + 1
_PATTERNS = [route for route in ROUTES if "{" in route.path]
_BY_PATH = {
    route.path: [other for other in ROUTES if other.path == route.path]
    for route in ROUTES
    if route not in _PATTERNS
}
