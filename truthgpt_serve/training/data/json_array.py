"""Reads a list of objects from a `.json` file, one by one."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from truthgpt_serve.training.data.bad_rows import BadRows
from truthgpt_serve.training.data.inventory import shown
from truthgpt_serve.training.data.rows import Row, describe
from truthgpt_serve.training.data.streams import (
    MAX_LINE_BYTES,
    DamagedStream,
    open_rows,
    report_damage,
)
from truthgpt_serve.training.errors import TrainingError

_CHUNK_BYTES = 1 << 20
_SPACE = " \t\r\n"
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes; in JSON itself a surrogate is written in ASCII."""
_MAX_WORD = 16
"""Characters of the longest word or escape that may be cut, such as `-Infinity`."""


class _NotJson(Exception):
    """What is wrong with the next element."""


class _Text:
    """The part of a file's text that has been read and not used.

    Attributes:
        is_text: Whether the last value was UTF-8.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        # What is not UTF-8 is judged by element: a chunk has sound ones before it.
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._is_whole = "", 0, False
        self.is_text = True

    def _more(self) -> bool:
        """Reads on, as much again as there is: an element is then parsed a few times at most."""
        if self._is_whole:
            return False
        rest = self._text[self._at :]
        if len(rest) > MAX_LINE_BYTES:
            raise _NotJson(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
        read = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        self._is_whole = not read
        self._text, self._at = rest + self._decode(read, final=not read), 0
        return True

    def peek(self) -> str:
        """Returns the next character that is no space; nothing at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Leaves the character out that `peek` gave."""
        self._at += 1

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        """Returns whether an element is wrong because the rest of it has not been read."""
        near_end = error.pos >= len(self._text) - _MAX_WORD
        return near_end or error.msg.startswith("Unterminated string")

    def value(self) -> Any:
        """Returns the next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error) or not self._more():
                    raise _NotJson(f"is not JSON: {error.msg}") from error
                continue
            except ValueError as error:  # a number of too many digits
                raise _NotJson(f"is not JSON: {error}") from error
            except RecursionError as error:
                raise _NotJson("is nested too deeply") from error
            # A number may go on behind what has been read.
            if end < len(self._text) or not self._more():
                self.is_text = not _NOT_UTF8.search(self._text, self._at, end)
                self._at = end
                return value


def read_json(file: Path, text_field: str, bad_rows: BadRows) -> Iterator[Row]:
    """Yields the objects of a list, or of each line where the file has no list.

    A place is `file: row n`, from 1. What is behind an element that is not JSON is lost.

    Raises:
        TrainingError: The file holds one object over several lines.
    """
    number = 1
    try:
        with open_rows(file) as stream:
            text = _Text(stream)
            is_list = text.peek() == "["
            if is_list:
                text.skip()
            for number, value in enumerate(_values(text, is_list), start=1):
                place = f"{file}: row {number}"
                if not text.is_text:
                    bad_rows.report(place, "is not UTF-8 text")
                elif not isinstance(value, dict):
                    bad_rows.report(place, f"must be a JSON object, found {describe(value)}")
                elif not is_list and number == 1 and not text.peek():
                    raise TrainingError(_one_object(file))
                else:
                    yield Row(value, place)
                number += 1
    except DamagedStream as error:
        report_damage(f"{file}: row {number}", error, bad_rows)
    except _NotJson as error:
        bad_rows.report(f"{file}: row {number}", f"{error}; all behind it is lost")


def _values(text: _Text, is_list: bool) -> Iterator[Any]:
    end = "]" if is_list else ""
    while text.peek() != end:
        yield text.value()
        following = text.peek()
        if not is_list or following == end:
            continue
        if following != ",":
            raise _NotJson("does not follow a comma")
        text.skip()
    if is_list:
        text.skip()
        if text.peek():
            raise _NotJson("is behind the end of the list")


def _one_object(file: Path) -> str:
    fix = "write a list of objects, or an object on each line"
    return f"{shown(file)}: holds a single object, not a list of rows ({fix})"
