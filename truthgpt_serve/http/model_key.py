"""Finds the model that a request's body names, JSON or a multipart form, and refuses a second one.

A decoder takes the last of two equal keys, and a request is on its way as soon as the first is
there: without this, a client could have one model's name routed by and another one answered under.
`ModelKey` reads JSON's tokens alone: whoever answers reads and checks the whole body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from python_multipart.multipart import parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import REST_OF_STRING, not_json, remove_strings
from truthgpt_serve.http.multipart import FormParts
from truthgpt_serve.request_schema import bad_field

SLICE_BYTES = 64 * 1024
"""What is looked at in one step: a few milliseconds, whatever it holds."""
MAX_VALUE_BYTES = 8 * 1024
"""Longest way to write a model's name, with the white space in front of it."""
MAX_NAME_BYTES = 512
"""Longest name of a model; longer ones are refused."""
MAX_DECODED_BYTES = 8 * 2**20
"""Longest JSON body that is decoded whole to find its model, which keeps others waiting. Of a
longer one only what is outside strings is looked at: the model finds what else is wrong."""
MAX_FORM_PARTS = 4096
"""Most parts of a form: many times what a model takes."""

_MODEL = rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
_MAX_SPELLING_BYTES = 32
"""The longest way to write the key: each letter as an escape of six bytes, and two quotes."""

_find_model = re.compile(_MODEL).search
_rest_of_string = re.compile(REST_OF_STRING, re.DOTALL)
_find_tokens = re.compile(
    rb'(?P<model>%b)|"%b"|(?P<mark>[{}\[\],:])' % (_MODEL, REST_OF_STRING), re.DOTALL
).finditer
_match_value = re.compile(rb'\s*+:\s*+("%b")' % REST_OF_STRING, re.DOTALL).match
_MARKS = (b"{", b"}", b"[", b"]", b",", b":")

_STRING, _KEY = b"\1", b"\2"
"""What stands for a string `model`, and for one where a key stands: JSON has neither byte."""
_mark_models = re.compile(rb"(?<!\\)%b" % _MODEL).sub
"""The quote of a string is escaped nowhere, and in a string no other quote is unescaped."""
_remove_flat = re.compile(rb"\{%b*+\}" % _KEY).sub
_NO_MARKS = bytes(set(range(256)) - set(b"{}[],:" + _STRING))
_AS_BRACES = bytes.maketrans(b"[]", b"{}")
_OUTSIDE_STRINGS = b" \t\r\n{}[],:0123456789+-.eEtrufalsn"
"""All bytes that valid JSON has outside strings."""


class ModelKey:
    """Reads a JSON object piece by piece and raises at its second top-level key `model`.

    What has no such string in it, and that is nearly all, is counted through at the speed of C.

    Attributes:
        value_at: Where in the body the first key ends, or None before it was seen.
        is_odd: Whether there was what JSON has nowhere outside a string.
    """

    def __init__(self) -> None:
        self.value_at: int | None = None
        self.is_odd = False
        self._end = 0
        self._depth = 0
        self._mark = b""
        """The last token that is no value: behind a brace or a comma, a string is a key."""
        self._held = b""
        """The beginning of a string that may become the key."""
        self._in_string = False
        self._escapes = False

    @property
    def is_whole(self) -> bool:
        """Whether all that was opened is closed."""
        return not (self._depth or self._held or self._in_string)

    def feed(self, piece: bytes) -> None:
        """Reads on. Raises RequestError at the second key."""
        for start in range(0, len(piece), SLICE_BYTES):
            self._feed(piece[start : start + SLICE_BYTES])

    def _feed(self, piece: bytes) -> None:
        data, self._held = self._held + piece, b""
        self._end += len(piece)
        if self._in_string:
            data = self._leave_string(data)
        start = self._end - len(data)
        outside = remove_strings(b"", data)
        opening = outside.find(b'"')
        if opening >= 0:  # a string that is not closed: all behind it is its beginning
            cut = len(data) - len(outside) + opening
            self._enter_string(data[cut:])
            data, outside = data[:cut], outside[:opening]
        self.is_odd = self.is_odd or bool(outside.translate(None, _OUTSIDE_STRINGS))
        if _find_model(data) and self._has_key(data):
            self._read_tokens(data, start)
        else:
            self._skip(outside)

    def _leave_string(self, data: bytes) -> bytes:
        """Returns what follows the string that an earlier piece began."""
        if not data:
            return data
        if b'"' not in data and b"\\" not in data:  # as in the middle of an image
            self._escapes = False
            return b""
        end = _find_end(data, int(self._escapes))
        self._in_string = data[end : end + 1] != b'"'
        self._escapes = self._in_string and end < len(data)
        return b"" if self._in_string else data[end + 1 :]

    def _enter_string(self, beginning: bytes) -> None:
        if len(beginning) < _MAX_SPELLING_BYTES:
            self._held = beginning
            return
        self._in_string = True
        self._escapes = _find_end(beginning, 1) < len(beginning)

    def _has_key(self, data: bytes) -> bool:
        """Whether a string `model` is a key of the outermost object, and not of one within it."""
        marks = remove_strings(b"", _mark_models(_STRING, data)).translate(None, _NO_MARKS)
        begin = b"," if self._mark and self._mark in b"{," else b":"
        keys = (begin + marks).replace(b"{" + _STRING, b"{" + _KEY).replace(b"," + _STRING, _KEY)
        keys = keys.translate(_AS_BRACES, b",:" + _STRING)
        if self._depth:  # else one of the two would be the outermost object's
            keys = _remove_flat(b"", keys)
        depth = self._depth
        *parts, _ = keys.split(_KEY)
        for part in parts:
            depth += part.count(b"{") - part.count(b"}")
            if depth == 1:
                return True
        return False

    def _skip(self, outside: bytes) -> None:
        opened = outside.count(b"{") + outside.count(b"[")
        closed = outside.count(b"}") + outside.count(b"]")
        self._depth += opened - closed
        last = max(map(outside.rfind, _MARKS))
        if last >= 0:
            self._mark = outside[last : last + 1]

    def _read_tokens(self, data: bytes, start: int) -> None:
        """Reads a slice that has the key, and so one of a whole body: the second one raises."""
        known = self.value_at
        for token in _find_tokens(data):
            if mark := token["mark"]:
                self._mark = mark
                self._depth += (mark in b"{[") - (mark in b"}]")
            elif token["model"] and self._depth == 1 and self._mark in b"{,":
                if self.value_at is not None:
                    raise refuse_second()
                self.value_at = start + token.end()
        if self.value_at == known:
            raise not_json("it has a stray character")

    def value(self, body: Iterable[bytes]) -> tuple[str, int, int] | None:
        """Returns the value of the key, and where its first byte and the one behind it are.

        Args:
            body: All pieces, of which the key was found.

        Returns:
            None for a value that is no string, or is longer than `MAX_VALUE_BYTES`.

        Raises:
            RequestError: The string is not valid.
        """
        at = self.value_at or 0
        found = _match_value(_cut(body, at, MAX_VALUE_BYTES))
        if found is None:
            return None
        try:
            return msgspec.json.decode(found[1], type=str), at + found.start(1), at + found.end(1)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise not_json(error) from None


def _cut(body: Iterable[bytes], start: int, length: int) -> bytes:
    found = b""
    for piece in body:
        found += piece[start : start + length - len(found)]
        start = max(0, start - len(piece))
        if len(found) == length:
            break
    return found


def _find_end(data: bytes, start: int) -> int:
    """Returns where the string that `data[start:]` goes on with ends, without its quote."""
    rest = _rest_of_string.match(data, start)
    return rest.end() if rest else start  # the pattern matches nothing at all too


def refuse_second() -> RequestError:
    """Returns the error for a body that names its model twice."""
    return RequestError("`model` is given twice: send it once", param="model")


def may_repeat(body: bytes) -> bool:
    """Whether a whole body must be looked at; a few cheap searches, false for almost every one."""
    escaped = b"\\" in body and b"\\u006" in body  # the first is the cheaper by far
    return escaped or body.find(b'"model"') != body.rfind(b'"model"')


class _Head(msgspec.Struct):
    model: str | msgspec.UnsetType | None = msgspec.UNSET


_decode_head = msgspec.json.Decoder(_Head).decode


def decode_model(body: bytes) -> str | msgspec.UnsetType | None:
    """Returns the `model` of a whole JSON body, the last of several; `UNSET` where it has none.

    Raises:
        RequestError: The body is not JSON or not an object, or `model` is no string.
    """
    try:
        return _decode_head(body).model
    except msgspec.ValidationError as error:
        said = str(error).partition(" - at")[0]
        words = said.partition(", got ")[2] or "`float`"  # out of range, such as 1e400
        if "$.model" in str(error):
            raise bad_field("model", f"must be a string (found {words})") from None
        raise RequestError(f"the request body must be a JSON object (found {words})") from None
    except RecursionError:
        raise not_json("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(error) from None


class FormModel(FormParts):
    """Finds the field `model` of a form that comes in pieces; other fields pass by unread.

    Attributes:
        name: Its value, or None before it was read.
        span: Where that begins and ends in a form that was written at once.
    """

    def __init__(self) -> None:
        super().__init__(MAX_FORM_PARTS)
        self.name: str | None = None
        self.span = (0, 0)
        self._reads = False
        self._bytes = bytearray()

    def begin_part(self, headers: Mapping[bytes, bytes]) -> None:
        """See `FormParts`. Raises RequestError for a second `model`."""
        options = parse_options_header(headers.get(b"content-disposition", b""))[1]
        self._reads = options.get(b"name") == b"model" and b"filename" not in options
        if self._reads and self.name is not None:
            raise refuse_second()

    def add_data(self, data: bytes, start: int, end: int) -> None:
        """See `FormParts`. Raises RequestError for a name that is too long."""
        if self._reads:
            if not self._bytes:
                self.span = (start, start)
            self._bytes += data[start:end]
            if len(self._bytes) > MAX_NAME_BYTES:
                raise bad_field("model", f"is longer than {MAX_NAME_BYTES} bytes")

    def end_part(self) -> None:
        """See `FormParts`. Raises RequestError for a name that is not UTF-8."""
        if self._reads:
            self.span = (self.span[0], self.span[0] + len(self._bytes))
            try:
                self.name = self._bytes.decode()
            except UnicodeDecodeError:
                raise bad_field("model", "is not valid UTF-8") from None
