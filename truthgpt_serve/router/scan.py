"""Finds the top-level `model` of a request body, reading no further than it must.

Knows the two body types that name a model, JSON and multipart forms, and nothing of what else they
hold.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

import ijson
import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.router.repeats import RepeatedModel, may_repeat, refuse_second

MAX_MODEL_NAME_BYTES = 512
"""Longest `model` value that is read; longer ones are refused."""
MAX_SCANNED_BYTES = 256 * 1024
"""Bytes of a JSON body that are looked at as they come. Decoding what is longer once, at its end,
takes a tenth of the time, and clients that write `model` early write it here."""

_MISSING = (
    "the request has no `model`: add the top-level field `model`, one of the names at "
    "GET /v1/models"
)


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
        raise RequestError(_MISSING, param="model")
    if may_repeat(body):
        RepeatedModel().feed(body)
    return _checked(model)


def _type_found(error: Exception) -> str:
    return str(error).partition(" - at")[0].replace("Expected `str`, got", "found")


def _first_line(error: Exception) -> str:
    """Returns what ijson says, without the excerpt of the body that follows."""
    detail = error.args[0] if error.args else ""
    text = detail.decode(errors="replace") if isinstance(detail, bytes) else str(detail)
    return text.partition("\n")[0].strip()


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
    """Reads a JSON body that arrives in pieces, as far as `MAX_SCANNED_BYTES`."""

    def __init__(self) -> None:
        self._model: str | None = None
        self._depth = 0
        self._expects_model = False
        self._seen_anything = False
        self._num_scanned_bytes = 0
        self._parser = ijson.basic_parse_coro(self._events())

    @ijson.coroutine  # type: ignore[untyped-decorator]  # ijson ships no types for its coroutines
    def _events(self) -> Generator[None, tuple[str, Any], None]:
        while True:
            event, value = yield
            self._on_event(event, value)

    def _on_event(self, event: str, value: Any) -> None:
        if self._depth == 0 and event != "start_map" and not self._seen_anything:
            raise RequestError("the request body must be a JSON object")
        self._seen_anything = True
        if self._expects_model:
            self._expects_model = False
            if event != "string":
                raise RequestError("`model` must be a string", param="model")
            if self._model is None:
                self._model = _checked(value)
        elif event in ("start_map", "start_array"):
            self._depth += 1
        elif event in ("end_map", "end_array"):
            self._depth -= 1
        elif event == "map_key":
            self._expects_model = self._depth == 1 and value == "model"

    def feed(self, piece: bytes) -> str | None:
        """See `ModelScanner.feed`."""
        if self._num_scanned_bytes > MAX_SCANNED_BYTES:
            return None
        self._num_scanned_bytes += len(piece)
        if not piece:
            return self._model  # to ijson, no bytes are the end
        try:
            self._parser.send(piece)
        except ijson.JSONError as error:
            raise _not_json(_first_line(error)) from None
        except StopIteration:
            raise _not_json("there is text after the end of the object") from None
        return self._model

    def finish(self, body: list[bytes]) -> str:
        """See `ModelScanner.finish`."""
        return model_of_json(b"".join(body))

    def watch(self, body: list[bytes]) -> Callable[[bytes], object]:
        """See `ModelScanner.watch`."""
        repeated = RepeatedModel()
        for piece in body:
            repeated.feed(piece)
        return repeated.feed


class FormModelScanner:
    """Reads a multipart form; other fields, files too, pass by unread."""

    def __init__(self, boundary: bytes) -> None:
        self._model: str | None = None
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
        if self._in_model:
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
            raise RequestError(_MISSING, param="model")
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
