"""Writes the name of the only model into a body that names none, for families that want it."""

from __future__ import annotations

import re

from python_multipart.multipart import parse_options_header

from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.router.upload import RequestBody

_EMPTY = re.compile(rb"[ \t\r\n]*\}")


def add_model(body: RequestBody, content_type: bytes, name: str) -> None:
    """Adds `model` to a body that the scanner has read to its end.

    Args:
        body: The body; a valid JSON object or multipart form without `model`.
        content_type: Its type.
        name: The model's name.
    """
    data = b"".join(body.pieces)
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if content_type[:10].lower() == b"multipart/" and boundary:
        start = data.index(b"--" + boundary)
        head = b'--%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' % boundary
        added = head + name.encode() + b"\r\n"
    else:
        start = data.index(b"{") + 1
        is_empty = _EMPTY.match(data, start) is not None
        added = b'"model":' + encode_json(name) + (b"" if is_empty else b",")
    body.pieces[:] = [data[:start], added, data[start:]]
    body.num_bytes = len(data) + len(added)
