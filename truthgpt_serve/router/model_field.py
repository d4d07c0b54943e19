"""Finds the top-level `model` of a request body, reading no further than it must.

Knows the two body types that name a model, JSON and multipart forms, and nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jiter
import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.model_key import ModelKey, may_repeat, refuse_second

MAX_MODEL_NAME_BYTES = 512
"""Longest `model` value that is read; longer ones are refused."""
MAX_SCANNED_BYTES = 256 * 1024
"""Bytes of a JSON body that are parsed as they come: clients that write `model` early write it
here."""
MAX_DECODED_BYTES = 8 * 2**20
"""Longest JSON body that is decoded whole where `model` comes late. Of a longer one, which would
keep others waiting, only the name is read: the model finds what else is wrong."""
MAX_PARTS = 4096
"""Most parts of a form: many times what a model takes."""


class MissingModelError(RequestError):
    """A body without `model`."""

    def __init__(self) -> None:
        message = "the request has no `model`: add the top-level field `model`, one of the names at"
        super().__init__(f"{message} GET /v1/models", param="model")


class ModelScanner(Protocol):
    """Reads a body piece by piece until the model name is known."""

    def feed(self, piece: bytes) -> str | None:
        """Reads on; returns the name once it is known. Raises RequestError for a malformed body."""

    def finish(self, body: list[bytes]) -> str:
        """Returns the name, at the end of a body whose name is still unknown.

        Args:
            body: All pieces.

        Raises:
            RequestError: The body is malformed or has no `model`.
        """

    def watch(self, body: list[bytes]) -> Callable[[bytes], object]:
        """Returns what must see the rest of a body whose name is known: it raises at a second one.

        Args:
            body: The pieces until now.

        Raises:
            RequestError: They have a second name already.
        """


class _Head(msgspec.Struct):
    model: str | msgspec.UnsetType = msgspec.UNSET


_HEAD_DECODER = msgspec.json.Decoder(_Head)


def model_of_json(body: bytes) -> str:
    """Returns the `model` of a whole JSON body.

    Raises:
        RequestError: Not JSON, not an object, or no single `model` that is a non-empty string.
    """
    model = _decode_model(body)
    if may_repeat(body):
        ModelKey().feed(body)
    return model


def _decode_model(body: bytes) -> str:
    """Does the same, but takes the last of several."""
    try:
        model = _HEAD_DECODER.decode(body).model
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise RequestError(
                f"`model` must be a string ({_type_found(error)})", param="model"
            ) from None
        raise RequestError(
            f"the request body must be a JSON object ({_type_found(error)})"
        ) from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _not_json(str(error)) from None
    if isinstance(model, msgspec.UnsetType):
        raise MissingModelError
    return _checked(model)


def _type_found(error: Exception) -> str:
    return str(error).partition(" - at")[0].replace("Expected `str`, got", "found")


def _not_json(detail: str) -> RequestError:
    return RequestError(f"the request body is not valid JSON: {detail}")


def _checked(model: str) -> str:
    if not model:
        raise RequestError("`model` is empty: name one of those at GET /v1/models", param="model")
    if len(model) > MAX_MODEL_NAME_BYTES:
        raise RequestError(
            f"`model` is longer than {MAX_MODEL_NAME_BYTES} characters", param="model"
        )
    return model


class JsonModelScanner:
    """Reads a JSON body that arrives in pieces.

    Up to `MAX_SCANNED_BYTES` it is parsed again whenever it has doubled, which costs as much as
    reading it twice. Behind that only the key is looked for. A body in which the parser finds a
    fault is left to `finish`, which says what is wrong with it.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._next_parse = 1
        self._ended = False
        self._key = ModelKey()

    def feed(self, piece: bytes) -> str | None:
        """See `ModelScanner.feed`."""
        if self._ended:
            self._key.feed(piece)
            return None
        self._head += piece
        if len(self._head) < min(self._next_parse, MAX_SCANNED_BYTES):
            return None
        self._next_parse = 2 * len(self._head)
        model = self._find()
        if model is None and len(self._head) >= MAX_SCANNED_BYTES:
            self._end()
        return model

    def _find(self) -> str | None:
        head = bytes(self._head[:MAX_SCANNED_BYTES])
        try:
            value = jiter.from_json(head, allow_inf_nan=False, cache_mode="none", partial_mode=True)
        except ValueError:
            if self._head.strip():
                self._end()
            return None
        if not isinstance(value, dict):
            raise RequestError("the request body must be a JSON object")
        model = value.get("model")
        if model is None:
            return None
        if not isinstance(model, str):
            raise RequestError("`model` must be a string", param="model")
        return _checked(model)

    def _end(self) -> None:
        self._ended = True
        self._key.feed(bytes(self._head))
        self._head.clear()

    def finish(self, body: list[bytes]) -> str:
        """See `ModelScanner.finish`."""
        if sum(map(len, body)) <= MAX_DECODED_BYTES:
            return _decode_model(b"".join(body)) if self._ended else model_of_json(b"".join(body))
        if self._key.value_at is None:
            raise MissingModelError
        value = self._key.value(body)
        if value is None:
            raise RequestError(
                f"`model` must be a string of at most {MAX_MODEL_NAME_BYTES} characters",
                param="model",
            )
        return _checked(value[0])

    def watch(self, body: list[bytes]) -> Callable[[bytes], object]:
        """See `ModelScanner.watch`."""
        key = ModelKey()
        for piece in body:
            key.feed(piece)
        return key.feed


class FormModelScanner:
    """Reads a multipart form; other fields, files too, pass by unread."""

    def __init__(self, boundary: bytes) -> None:
        self._model: str | None = None
        self._num_parts = 0
        self._header_name = b""
        self._header_value = b""
        self._in_model = False
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
            },
        )

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(f"the multipart form has more than {MAX_PARTS} parts")
        self._in_model = False
        self._value.clear()
        self._header_name = self._header_value = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            options = parse_options_header(self._header_value)[1]
            self._in_model = options.get(b"name") == b"model" and b"filename" not in options
        self._header_name = self._header_value = b""

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_model:
            self._value += data[start:end]
            if len(self._value) > MAX_MODEL_NAME_BYTES:
                raise RequestError(
                    f"`model` is longer than {MAX_MODEL_NAME_BYTES} bytes", param="model"
                )

    def _on_part_end(self) -> None:
        if not self._in_model:
            return
        if self._model is not None:
            raise refuse_second()
        try:
            self._model = _checked(self._value.decode())
        except UnicodeDecodeError:
            raise RequestError("`model` is not valid UTF-8", param="model") from None

    def feed(self, piece: bytes) -> str | None:
        """See `ModelScanner.feed`."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _not_a_form(error) from None
        return self._model

    def finish(self, body: list[bytes]) -> str:
        """See `ModelScanner.finish`."""
        if self._model is None:
            raise MissingModelError
        return self._model

    def watch(self, body: list[bytes]) -> Callable[[bytes], object]:
        """See `ModelScanner.watch`."""
        return self.feed


def scanner_for(content_type: bytes) -> ModelScanner:
    """Returns the scanner for a body of this `Content-Type`; JSON when it is not a form.

    Raises:
        RequestError: A multipart form without a boundary, or with one that cannot be.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return JsonModelScanner()
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(
            "the multipart form has no boundary: send `Content-Type: multipart/form-data; "
            "boundary=...`"
        )
    try:
        return FormModelScanner(boundary)
    except FormParserError as error:
        raise _not_a_form(error) from None


def _not_a_form(error: FormParserError) -> RequestError:
    return RequestError(f"the request body is not a valid multipart form: {error}")
