"""The Open Inference Protocol's routes for any class whose task is tensor.

`request` reads tensors, `codec` calls the class, `response` writes the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from truthgpt_serve.errors import ServerError, UnavailableError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.open_inference import MODEL_VERSION, MODELS_PREFIX, PREFIX, server_metadata
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.request_reader import RequestReader
from truthgpt_serve.server.tensors.codec import OipCodec
from truthgpt_serve.server.tensors.compression import accepted_coding, compress
from truthgpt_serve.server.tensors.request import InferRequest, header_length, parse_request
from truthgpt_serve.server.tensors.response import Arrays, check_outputs, encode_answer

Handler = Callable[[Connection], Awaitable[None]]
T = TypeVar("T")

HEADER_LENGTH = b"inference-header-content-length"
INLINE_BYTES = 2**20
"""Up to this, copying numbers takes less time than handing them to a thread."""
INLINE_ELEMENTS = 2**13
"""The same for what is read or written element by element: JSON and BYTES."""


class OipRoutes:
    """Answers inference requests with one model.

    A class may say more of itself: `metadata()`, called once after `load`, returns `platform`,
    `inputs` and `outputs`, the last two as lists of `{"name", "datatype", "shape"}` with -1 for a
    free axis; `request_parameters` names the request parameters that it takes, which then arrive
    among the inputs.

    Args:
        instance: The model; started before the first request.
        reader: Reads its requests.
    """

    def __init__(self, instance: ModelInstance, reader: RequestReader) -> None:
        self._instance = instance
        self._reader = reader
        self._card: dict[str, Any] | None = None

    def routes(self) -> dict[str, dict[str, Handler]]:
        """Returns the handlers by path and method."""
        model = f"{MODELS_PREFIX}{self._instance.name}"
        routes: dict[str, dict[str, Handler]] = {
            PREFIX: {"GET": self._server},
            f"{PREFIX}/health/live": {"GET": self._live},
            f"{PREFIX}/health/ready": {"GET": self._ready},
        }
        for path in (model, f"{model}/versions/{MODEL_VERSION}"):
            routes[path] = {"GET": self._metadata}
            routes[f"{path}/ready"] = {"GET": self._model_ready}
            routes[f"{path}/infer"] = {"POST": self._infer}
        return routes

    # -- what there is

    async def _server(self, connection: Connection) -> None:
        await connection.reply(encode_json(server_metadata()))

    async def _live(self, connection: Connection) -> None:
        await connection.reply(encode_json({"live": True}))

    async def _ready(self, connection: Connection) -> None:
        await self._check_health()
        await connection.reply(encode_json({"ready": True}))

    async def _model_ready(self, connection: Connection) -> None:
        await self._check_health()
        await connection.reply(encode_json({"name": self._instance.name, "ready": True}))

    async def _check_health(self) -> None:
        try:
            await self._instance.check_health()
        except Exception as error:  # whatever the class raises
            raise UnavailableError(f"the model {self._instance.name!r} is not healthy") from error

    async def _metadata(self, connection: Connection) -> None:
        await connection.reply(encode_json(await self._describe()))

    async def _describe(self) -> dict[str, Any]:
        """Returns the model's metadata; asks its class once."""
        if self._card is None:
            said: Any = {}
            label = f"{self._instance.label}.metadata"
            if callable(method := getattr(self._instance.model, "metadata", None)):
                said = await asyncio.wrap_future(self._instance.workers.submit_aside(method))
            if not isinstance(said, dict):
                raise ServerError(f"{label} returned {type(said).__name__}; it returns a dict")
            self._card = {
                "name": self._instance.name,
                "versions": [MODEL_VERSION],
                "platform": str(said.get("platform", "python")),
                "inputs": _tensors(said.get("inputs", []), f"{label}: inputs"),
                "outputs": _tensors(said.get("outputs", []), f"{label}: outputs"),
            }
        return self._card

    # -- inference

    async def _infer(self, connection: Connection) -> None:
        body = await self._reader.read(connection)
        request = await self._parse(connection, body)
        known = [output["name"] for output in (await self._describe())["outputs"]]
        if known:  # else it shows when the model has worked
            check_outputs(request, known)
        limit_s = min(self._instance.max_request_s, request.timeout_s or float("inf"))
        async with connection.guard(limit_s) as guard:
            arrays = await self._instance.run(OipCodec(request, self._instance.label))
            coding = accepted_coding(connection.header(b"accept-encoding"))
            content, content_type, headers = await _run(
                lambda: self._encode(arrays, request, coding),
                aside=bool(coding) or _is_long(arrays, request),
            )
            guard.release()
            await connection.reply(content, content_type, headers=headers)

    async def _parse(self, connection: Connection, body: bytes) -> InferRequest:
        json_bytes = header_length(connection.header(HEADER_LENGTH), len(body))
        parameters = tuple(getattr(self._instance.model, "request_parameters", ()))
        aside = json_bytes > INLINE_ELEMENTS or len(body) > INLINE_BYTES
        if not aside and len(body) > INLINE_ELEMENTS:
            aside = b'"BYTES"' in body[:json_bytes]
        return await _run(lambda: parse_request(body, json_bytes, parameters), aside=aside)

    def _encode(
        self, arrays: Arrays, request: InferRequest, coding: str
    ) -> tuple[bytes, str, Headers]:
        body, json_bytes = encode_answer(arrays, request, self._instance.name)
        content_type, headers = "application/json", []
        if json_bytes is not None:
            content_type = "application/octet-stream"
            headers = [(HEADER_LENGTH, b"%d" % json_bytes)]
        packed = compress(body, coding) if coding else None
        if packed is not None:
            body = packed
            headers += [(b"content-encoding", coding.encode())]
        if coding:
            headers += [(b"vary", b"accept-encoding")]
        return body, content_type, headers


def _tensors(value: Any, place: str) -> list[dict[str, Any]]:
    keys = ("name", "datatype", "shape")
    try:
        return [{key: tensor[key] for key in keys} for tensor in value]
    except (KeyError, TypeError) as error:
        raise ServerError(f"{place} is not a list of dicts with {', '.join(keys)}") from error


def _is_long(arrays: Arrays, request: InferRequest) -> bool:
    """Whether writing the outputs takes longer than the event loop should wait."""
    num_bytes = num_elements = 0
    for name in request.outputs or arrays:
        array = arrays[name]
        if request.is_binary(name) and array.dtype.kind not in "OSU":
            num_bytes += array.nbytes
        else:
            num_elements += array.size
    return num_bytes > INLINE_BYTES or num_elements > INLINE_ELEMENTS


async def _run(function: Callable[[], T], *, aside: bool) -> T:
    return await asyncio.to_thread(function) if aside else function()
