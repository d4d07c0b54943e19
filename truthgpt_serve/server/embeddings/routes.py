"""OpenAI's embedding route for any class whose task is embedding.

`request` reads the fields, `codec` calls the class and encodes vectors.

A new route also needs a line in `server/application.py` (`_routes`), which sends requests here, and
in `http/routes.py`, the list of all routes; and its description in `router/openapi/vectors.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.request_schema import read_request
from truthgpt_serve.server.embeddings.codec import EmbeddingCodec, Vector
from truthgpt_serve.server.embeddings.request import EmbeddingRequest
from truthgpt_serve.server.execution.gather import CallSlots, gather
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.request_reader import RequestReader
from truthgpt_serve.server.text.tokenizer import Tokenizer

PATH = "/v1/embeddings"


class EmbeddingRoutes:
    """Answers embedding requests with one model: each text is a call of its own.

    So texts of one request and of others share the batches of a class with `infer_batch`.

    Args:
        instance: The model; started before the first request.
        reader: Reads its requests.
    """

    def __init__(self, instance: ModelInstance, reader: RequestReader) -> None:
        self._instance = instance
        self._reader = reader
        self._slots = CallSlots(lambda: instance.max_ongoing)

    async def create(self, connection: Connection) -> None:
        """Answers `POST /v1/embeddings`."""
        instance = self._instance
        fields = await self._reader.read_fields(connection, "embedding", "embedding route")
        request = read_request(EmbeddingRequest, fields)
        self._reader.own_name(request.model)
        if request.has_token_ids and not getattr(instance.model, "accepts_token_ids", False):
            raise UnsupportedError(
                f"the model {instance.name!r} takes texts, not token ids", param="input"
            )
        codecs = [
            EmbeddingCodec(
                inputs,
                instance.label,
                base64_wanted=request.encoding_format == "base64",
                check=self._find_check(),
            )
            for inputs in request.inputs
        ]
        async with connection.guard(instance.max_request_s) as guard:
            vectors = await gather(
                [self._vector(codec, index) for index, codec in enumerate(codecs)]
            )
            guard.release()
            await connection.reply(self._encode(request, vectors))

    def _find_check(self) -> Callable[[str], object] | None:
        limit = getattr(self._instance.model, "max_model_len", None)
        if limit is None:
            return None
        return partial(self._tokenizer.check, limit=limit, special=True, param="input")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.of(self._instance.model)

    async def _vector(self, codec: EmbeddingCodec, index: int) -> Vector:
        vector: Vector = await self._slots.run(index, lambda: self._instance.run(codec))
        return vector

    def _encode(self, request: EmbeddingRequest, vectors: list[Vector]) -> bytes:
        data = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, vector.json)
            for index, vector in enumerate(vectors)
        )
        end: dict[str, Any] = {"model": self._instance.name}
        num_tokens = self._count(request, vectors)
        if num_tokens is not None:
            end["usage"] = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return b'{"object":"list","data":[%b],%b' % (data, encode_json(end)[1:])

    def _count(self, request: EmbeddingRequest, vectors: list[Vector]) -> int | None:
        """Returns the tokens of all texts, or None when the model does not count them."""
        total = 0
        for inputs, vector in zip(request.inputs, vectors, strict=True):
            count = vector.num_tokens
            if count is None and "token_ids" in inputs:
                count = len(inputs["token_ids"])
            if count is None:
                count = self._tokenizer.count(inputs["text"], special=True)
            if count is None:
                return None
            total += count
        return total
