"""Reads a whole `multipart/form-data` body into its parts; knows no field by name."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import bad_field

FORM_TYPE = b"multipart/form-data"
MAX_PARTS = 256
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


def parse_form(boundary: bytes, body: bytes) -> list[Part]:
    """Returns the parts in their order.

    Raises:
        RequestError: The body is not a whole form with this boundary, or has too many parts.
    """
    if not body:
        raise RequestError("the request has no body; send a multipart form")
    collector = _Collector()
    try:
        MultipartParser(
            boundary,
            {
                "on_part_begin": collector.on_part_begin,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_part_data": collector.on_part_data,
                "on_part_end": collector.on_part_end,
                "on_end": collector.on_end,
            },
        ).write(body)
    except FormParserError as error:
        raise RequestError(f"the request body is not a valid multipart form: {error}") from None
    if not collector.ended:
        raise RequestError("the multipart form ends before its last boundary")
    return collector.parts


class _Collector:
    """Takes the parser's events."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._pieces: list[bytes] = []
        self._header_name = b""
        self._header_value = b""
        self._headers: dict[bytes, bytes] = {}

    def on_part_begin(self) -> None:
        if len(self.parts) >= MAX_PARTS:
            raise RequestError(f"the multipart form has more than {MAX_PARTS} parts")
        self._pieces = []
        self._headers = {}
        self._header_name = self._header_value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def on_part_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise RequestError(f"part {len(self.parts) + 1} of the multipart form has no name")
        content_type = self._headers.get(b"content-type", b"").lower()
        is_file = b"filename" in options or content_type.startswith(_FILE_TYPES)
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self.parts.append(Part(name, data, is_file))

    def on_end(self) -> None:
        self.ended = True
