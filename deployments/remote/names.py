"""Puts one model name in the place of another: in requests, and in answers as they pass.

Changes the bytes of the name and no others. Knows the two body types that name a model, JSON and
multipart forms, and nothing of what else they hold.
"""

from __future__ import annotations

import asyncio
import re
from itertools import chain

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import bad_field, encode_json
from truthgpt_serve.http.model_key import (
    MAX_VALUE_BYTES,
    SLICE_BYTES,
    ModelKey,
    refuse_second,
)
from truthgpt_serve.http.multipart import FORM_TYPE, form_boundary

Span = tuple[int, int]

MAX_DECODED_BYTES = 8 * 2**20
"""Longest body that is decoded to see that it is JSON: that keeps the loop waiting even from a
thread. Of a longer one, all outside strings is looked at, which decides where strings end."""
MAX_PARTS = 4096
"""Most parts of a form."""

_MEMBER = b'"model"'
_match_object = re.compile(rb"\s*+\{").match
_match_null = re.compile(rb"\s*+:\s*+null").match


class _Head(msgspec.Struct):
    model: str | msgspec.UnsetType | None = msgspec.UNSET


_decode_head = msgspec.json.Decoder(_Head).decode


class NamedModel:
    """The model that a request's body names.

    Attributes:
        name: The name, or None for a body without one.
    """

    def __init__(self, body: bytes, name: str | None = None, span: Span = (0, 0)) -> None:
        self._body = body
        self._span = span
        self.name = name

    def replaced(self, written: bytes) -> bytes:
        """Returns the body with these bytes where the name is."""
        start, end = self._span
        return self._body[:start] + written + self._body[end:]


class NamedInJson(NamedModel):
    """The same, of a JSON object."""

    def renamed(self, name: str) -> bytes:
        """Returns the body with another name."""
        return self.replaced(encode_json(name))


class NamedInForm(NamedModel):
    """The same, of a multipart form."""

    def renamed(self, name: str) -> bytes:
        """Returns the body with another name."""
        return self.replaced(name.encode())


async def find_model_aside(body: bytes, content_type: bytes) -> NamedInJson | NamedInForm:
    """Does as `find_model`; a large body does not keep the event loop waiting."""
    if len(body) <= SLICE_BYTES:
        return find_model(body, content_type)
    return await asyncio.to_thread(find_model, body, content_type)


def find_model(body: bytes, content_type: bytes) -> NamedInJson | NamedInForm:
    """Returns the model that a request's body names.

    A body that is no form has to be a JSON object: what this side cannot read could name another
    model on the other.

    Raises:
        RequestError: The body is malformed, names its model twice, or by something else than text.
    """
    if parse_options_header(content_type)[0] == FORM_TYPE:
        return _find_in_form(body, form_boundary(content_type))
    return _find_in_json(body) if body else NamedInJson(body)


def _find_in_json(body: bytes) -> NamedInJson:
    if len(body) <= MAX_DECODED_BYTES:
        _check_json(body)
    elif _match_object(body) is None:
        raise RequestError("the body must be a JSON object")
    key = ModelKey()
    key.feed(body)
    if key.is_odd or not key.is_whole:
        raise RequestError("the body is not valid JSON")
    if key.value_at is None or _match_null(body, key.value_at):
        return NamedInJson(body)
    value = key.value((body,))
    if value is None:
        raise bad_field("model", f"must be a string of at most {MAX_VALUE_BYTES} bytes")
    name, *span = value
    return NamedInJson(body, name, (span[0], span[1])) if name else NamedInJson(body)


def _check_json(body: bytes) -> None:
    try:
        _decode_head(body)
    except msgspec.ValidationError as error:
        if "$.model" in str(error):
            raise bad_field("model", "must be a string") from None
        raise RequestError("the body must be a JSON object") from None
    except RecursionError:
        raise RequestError("the body is not valid JSON: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None


class _FormFields:
    """Takes the form parser's events; keeps where the values of the fields `model` are."""

    def __init__(self) -> None:
        self.spans: list[list[Span]] = []
        self.ended = False
        self._num_parts = 0
        self._in_model = False
        self._name = b""
        self._value = b""

    def on_part_begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise RequestError(f"the multipart form has more than {MAX_PARTS} parts")
        self._in_model = False
        self._name = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            if options.get(b"name") == b"model" and b"filename" not in options:
                self._in_model = True
                self.spans.append([])
        self._name = self._value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_model:
            self.spans[-1].append((start, end))

    def on_end(self) -> None:
        self.ended = True


def _find_in_form(body: bytes, boundary: bytes) -> NamedInForm:
    fields = _FormFields()
    names = ("part_begin", "header_field", "header_value", "header_end", "part_data", "end")
    try:
        callbacks = {f"on_{name}": getattr(fields, f"on_{name}") for name in names}
        MultipartParser(boundary, callbacks).write(body)  # type: ignore[arg-type]  # by their names
    except FormParserError as error:
        raise RequestError(f"the body is not a valid multipart form: {error}") from None
    if not fields.ended:
        raise RequestError("the multipart form ends before its last boundary")
    if len(fields.spans) > 1:
        raise refuse_second()
    ends = list(chain.from_iterable(chain.from_iterable(fields.spans)))
    if not ends:
        return NamedInForm(body)
    # All was written at once, so the events' places are places in the body.
    start, end = ends[0], ends[-1]
    try:
        return NamedInForm(body, body[start:end].decode(), (start, end))
    except UnicodeDecodeError:
        raise bad_field("model", "is not valid UTF-8") from None


class AnswerNames:
    """Gives an answer the name that the client asked for, wherever the answer names its model.

    That is every JSON member `"model"` whose value is the remote's name: of a whole answer, of each
    event, and of the response inside an event. Inside a text the quotes would be escaped.

    Args:
        theirs: The remote server's name.
        ours: The name that the client sent.
    """

    def __init__(self, theirs: str, ours: str) -> None:
        self._theirs = encode_json(theirs)
        self._find = re.compile(rb'("model"\s{0,8}:\s{0,8})%b' % re.escape(self._theirs))
        self._ours = encode_json(ours)
        self._longest = len(self._theirs) + len(_MEMBER) + 17
        self._held = b""

    def whole(self, data: bytes) -> bytes:
        """Returns a whole body, or whole events, with the client's name."""
        return self._find.sub(lambda found: found[1] + self._ours, data)

    def piece(self, data: bytes, *, more: bool) -> bytes:
        """Returns what can be said of a body so far; what may be half a name waits for the rest."""
        data = self.whole(self._held + data)
        self._held = b""
        if more and (half := self._find_half(data)) >= 0:
            data, self._held = data[:half], data[half:]
        return data

    def _find_half(self, data: bytes) -> int:
        at = max(0, len(data) - self._longest)
        while (at := data.find(b'"', at)) >= 0:
            if self._may_go_on(data[at:]):
                return at
            at += 1
        return at

    def _may_go_on(self, data: bytes) -> bool:
        if len(data) <= len(_MEMBER):
            return _MEMBER.startswith(data)
        behind = data.removeprefix(_MEMBER).lstrip()
        value = behind.removeprefix(b":")
        at_value = len(value) < len(behind)
        return data.startswith(_MEMBER) and (
            not behind or (at_value and self._theirs.startswith(value.lstrip()))
        )
