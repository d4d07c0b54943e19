"""Puts one model name in the place of another: in requests, and in answers as they pass.

Changes the bytes of the name and no others. Two body types name a model: JSON and multipart forms.
"""

from __future__ import annotations

import asyncio
import re

from python_multipart.multipart import parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import encode_json, not_json
from truthgpt_serve.http.model_key import (
    MAX_DECODED_BYTES,
    MAX_VALUE_BYTES,
    SLICE_BYTES,
    FormModel,
    ModelKey,
    decode_model,
)
from truthgpt_serve.http.multipart import FORM_TYPE, FormParser, form_boundary
from truthgpt_serve.request_schema import bad_field

Span = tuple[int, int]

_MEMBER = b'"model"'
_match_object = re.compile(rb"\s*+\{").match
_match_null = re.compile(rb"\s*+:\s*+null").match


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
        decode_model(body)
    elif _match_object(body) is None:
        raise RequestError("the request body must be a JSON object")
    key = ModelKey()
    key.feed(body)
    if key.is_odd or not key.is_whole:
        raise not_json("it has a stray character" if key.is_odd else "it ends too early")
    if key.value_at is None or _match_null(body, key.value_at):
        return NamedInJson(body)
    value = key.value((body,))
    if value is None:
        raise bad_field("model", f"must be a string of at most {MAX_VALUE_BYTES} bytes")
    name, *span = value
    return NamedInJson(body, name, (span[0], span[1])) if name else NamedInJson(body)


def _find_in_form(body: bytes, boundary: bytes) -> NamedInForm:
    form = FormModel()
    parser = FormParser(boundary, form)
    parser.write(body)
    parser.end()
    return NamedInForm(body, form.name or None, form.span)


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
