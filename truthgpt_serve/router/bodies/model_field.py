"""Finds the top-level `model` of a request body, reading no further than it must.

Two body types name a model: JSON and multipart forms; `http/model_key.py` decodes the name. Beside
it: `request_body.py` reads the body and calls this, `open_inference.py` takes the name from a path
below `/v2`, and `discovery.py` knows which application has the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import jiter
import msgspec
from python_multipart.multipart import parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.model_key import (
    MAX_DECODED_BYTES,
    MAX_NAME_BYTES,
    FormModel,
    ModelKey,
    decode_model,
    may_repeat,
)
from truthgpt_serve.http.multipart import FORM_TYPE, FormParser, form_boundary
from truthgpt_serve.request_schema import bad_field

MAX_SCANNED_BYTES = 256 * 1024
"""Bytes of a JSON body that are parsed as they come: clients that write `model` early write it
here."""
_EMPTY = re.compile(rb"[ \t\r\n]*\}")
_KINDS = {bool: "bool", int: "int", float: "float", str: "str", list: "array", dict: "object"}
"""As `decode_model` names what it finds, by what the parser makes of it."""


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
    model = decode_model(body)
    if model is msgspec.UNSET:
        raise MissingModelError
    if model is None:
        raise bad_field("model", "must be a string (found `null`)")
    return _checked(model)


def _checked(model: Any) -> str:
    if not isinstance(model, str):
        raise bad_field("model", f"must be a string (found `{_KINDS[type(model)]}`)")
    if not model:
        raise RequestError("`model` is empty: name one of those at GET /v1/models", param="model")
    if len(model) > MAX_NAME_BYTES:
        raise bad_field("model", f"is longer than {MAX_NAME_BYTES} characters")
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
            found = "null" if value is None else _KINDS[type(value)]
            raise RequestError(f"the request body must be a JSON object (found `{found}`)")
        model = value.get("model")
        return None if model is None else _checked(model)

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
            raise bad_field("model", f"must be a string of at most {MAX_NAME_BYTES} characters")
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
        self._form = FormModel()
        self._parser = FormParser(boundary, self._form)

    def feed(self, piece: bytes) -> str | None:
        """See `ModelScanner.feed`."""
        self._parser.write(piece)
        return None if self._form.name is None else _checked(self._form.name)

    def finish(self, body: list[bytes]) -> str:
        """See `ModelScanner.finish`."""
        raise MissingModelError

    def watch(self, body: list[bytes]) -> Callable[[bytes], object]:
        """See `ModelScanner.watch`."""
        return self.feed


def scanner_for(content_type: bytes) -> ModelScanner:
    """Returns the scanner for a body of this `Content-Type`; JSON when it is not a form.

    Raises:
        RequestError: A multipart form without a boundary, or with one that cannot be.
    """
    if parse_options_header(content_type)[0] != FORM_TYPE:
        return JsonModelScanner()
    return FormModelScanner(form_boundary(content_type))


def with_model(data: bytes, content_type: bytes, name: str) -> list[bytes]:
    """Returns the pieces of a body that names no model, with the name of the only one.

    Args:
        data: The whole body; a valid JSON object or multipart form without `model`.
        content_type: Its type.
        name: The model's name.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if content_type[:10].lower() == b"multipart/" and boundary:
        start = data.index(b"--" + boundary)
        head = b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' % boundary
        added = head + name.encode() + b"\r\n"
    else:
        start = data.index(b"{") + 1
        is_empty = _EMPTY.match(data, start) is not None
        added = b'"model":' + encode_json(name) + (b"" if is_empty else b",")
    return [data[:start], added, data[start:]]
