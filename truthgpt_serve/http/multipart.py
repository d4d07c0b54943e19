"""Reads `multipart/form-data` bodies, whole or as they come."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.request_schema import bad_field

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM_TYPE = b"multipart/form-data"
MAX_PARTS = 256
"""Most parts of a form that a model takes."""
_FILE_TYPES = (b"image/", b"audio/", b"video/", b"application/octet-stream")
"""Types of parts that are files without a file name, too."""
MAX_TEXT_BYTES = 1024 * 1024
"""Longest value of a field that is no file."""


@dataclass(slots=True)
class Part:
    """One part of a form.

    Attributes:
        name: The field's name.
        data: Its bytes.
        is_file: Whether it was sent as a file: with a file name, or with the type of a medium.
    """

    name: str
    data: bytes
    is_file: bool

    def text(self) -> str:
        """Returns the value of a field that is no file.

        Raises:
            RequestError: It is too long, or not UTF-8.
        """
        if len(self.data) > MAX_TEXT_BYTES:
            message = f"has {len(self.data)} bytes; a field that is no file has at most"
            raise bad_field(self.name, f"{message} {MAX_TEXT_BYTES}")
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise bad_field(self.name, "is not valid UTF-8") from None


def form_boundary(content_type: bytes) -> bytes:
    """Returns the boundary that a `Content-Type` names.

    Raises:
        RequestError: It names another type, or no boundary.
    """
    kind, options = parse_options_header(content_type)
    if kind != FORM_TYPE:
        found = kind.decode("latin-1")[:80] or "nothing"
        raise RequestError(
            f"this route takes a form: send `Content-Type: multipart/form-data`, not {found}"
        )
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(
            "the multipart form has no boundary: send `Content-Type: multipart/form-data; "
            "boundary=...`"
        )
    return boundary


class FormParser:
    """Reads a form that comes in pieces.

    Args:
        boundary: The form's boundary.
        parts: Takes its parts.

    Raises:
        RequestError: The boundary cannot be one.
    """

    def __init__(self, boundary: bytes, parts: FormParts) -> None:
        self._parts = parts
        try:
            self._parser = MultipartParser(boundary, parts.callbacks())
        except FormParserError as error:
            raise _no_form(error) from None

    def write(self, piece: bytes) -> None:
        """Reads on. Raises RequestError for what is no form, or one with too many parts."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise _no_form(error) from None

    def end(self) -> None:
        """Says that all was written. Raises RequestError when the form is not whole."""
        if not self._parts.ended:
            raise RequestError("the multipart form ends before its last boundary")


class FormParts(ABC):
    """Takes a parser's events, of which a subclass makes parts.

    It does not hold the parser: the circle would keep large forms in memory for long.

    Args:
        max_parts: Most parts of the form.

    Attributes:
        num_parts: Parts that have begun.
        ended: Whether the form is whole.
    """

    def __init__(self, max_parts: int) -> None:
        self.num_parts = 0
        self.ended = False
        self._max_parts = max_parts
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> MultipartCallbacks:
        """Returns what the parser calls."""
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self.add_data,
            "on_part_end": self.end_part,
            "on_end": self._on_end,
        }

    @abstractmethod
    def begin_part(self, headers: Mapping[bytes, bytes]) -> None:
        """Takes the beginning of a part; its headers have names in lower case."""

    @abstractmethod
    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Takes `data[start:end]` of the part."""

    @abstractmethod
    def end_part(self) -> None:
        """Takes the end of the part."""

    def _on_part_begin(self) -> None:
        self.num_parts += 1
        if self.num_parts > self._max_parts:
            raise RequestError(f"the multipart form has more than {self._max_parts} parts")
        self._name = self._value = b""
        self._headers = {}

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _on_headers_finished(self) -> None:
        self.begin_part(self._headers)

    def _on_end(self) -> None:
        self.ended = True


def _no_form(error: FormParserError) -> RequestError:
    return RequestError(f"the request body is not a valid multipart form: {error}")


def parse_form(boundary: bytes, body: bytes) -> list[Part]:
    """Returns the parts in their order.

    Raises:
        RequestError: The body is not a whole form with this boundary, or has too many parts.
    """
    if not body:
        raise RequestError("the request has no body; send a multipart form")
    collector = _Collector(MAX_PARTS)
    parser = FormParser(boundary, collector)
    parser.write(body)
    parser.end()
    return collector.parts


class _Collector(FormParts):
    """Keeps all parts."""

    def __init__(self, max_parts: int) -> None:
        super().__init__(max_parts)
        self.parts: list[Part] = []
        self._part = Part("", b"", False)
        self._pieces: list[bytes] = []

    def begin_part(self, headers: Mapping[bytes, bytes]) -> None:
        kind, options = parse_options_header(headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise RequestError(f"part {self.num_parts} of the multipart form has no name")
        content_type = headers.get(b"content-type", b"").lower()
        is_file = b"filename" in options or content_type.startswith(_FILE_TYPES)
        self._part = Part(name, b"", is_file)
        self._pieces = []

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def end_part(self) -> None:
        self._part.data = b"".join(self._pieces)
        self.parts.append(self._part)
