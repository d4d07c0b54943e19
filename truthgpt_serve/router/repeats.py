"""Finds a second top-level `model` in a JSON body of which the rest still arrives.

A decoder takes the last of two equal keys, and a request is on its way as soon as the first is
there: without this, a client could have one model's name routed by and another one answered under.
Knows JSON's tokens and no values: whoever answers reads and checks the whole body.
"""

from __future__ import annotations

import re

from truthgpt_serve.errors import RequestError

_MODEL = rb'"(?:m|\\u006[dD])(?:o|\\u006[fF])(?:d|\\u0064)(?:e|\\u0065)(?:l|\\u006[cC])"'
_MAX_SPELLING_BYTES = 32
"""The longest way to write the key: each letter as an escape of six bytes, and two quotes."""
_REST_OF_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'

_find_model = re.compile(_MODEL).search
_rest_of_string = re.compile(_REST_OF_STRING, re.DOTALL)
_remove_strings = re.compile(rb'"%b"' % _REST_OF_STRING, re.DOTALL).sub
_find_tokens = re.compile(
    rb'(?P<model>%b)|"%b"|(?P<mark>[{}\[\],:])' % (_MODEL, _REST_OF_STRING), re.DOTALL
).finditer
_MARKS = (b"{", b"}", b"[", b"]", b",", b":")


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


class RepeatedModel:
    """Reads a JSON object piece by piece and raises at its second top-level key `model`.

    What has no such string in it, and that is nearly all, is counted through at the speed of C.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._mark = b""
        """The last token that is no value: behind a brace or a comma, a string is a key."""
        self._held = b""
        """The beginning of a string that may become the key."""
        self._in_string = False
        self._escapes = False
        self._num_models = 0

    def feed(self, piece: bytes) -> None:
        """Reads on. Raises RequestError at the second key."""
        data, self._held = self._held + piece, b""
        if self._in_string:
            data = self._leave_string(data)
        outside = _remove_strings(b"", data)
        opening = outside.find(b'"')
        if opening >= 0:  # a string that is not closed: all behind it is its beginning
            cut = len(data) - len(outside) + opening
            self._enter_string(data[cut:])
            data, outside = data[:cut], outside[:opening]
        if _find_model(data):
            self._read_tokens(data)
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

    def _skip(self, outside: bytes) -> None:
        opened = outside.count(b"{") + outside.count(b"[")
        closed = outside.count(b"}") + outside.count(b"]")
        self._depth += opened - closed
        last = max(map(outside.rfind, _MARKS))
        if last >= 0:
            self._mark = outside[last : last + 1]

    def _read_tokens(self, data: bytes) -> None:
        for token in _find_tokens(data):
            if mark := token["mark"]:
                self._mark = mark
                self._depth += (mark in b"{[") - (mark in b"}]")
            elif token["model"] and self._depth == 1 and self._mark in b"{,":
                self._num_models += 1
                if self._num_models > 1:
                    raise refuse_second()
