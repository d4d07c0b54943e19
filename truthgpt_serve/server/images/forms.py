"""An image request's form as fields and files; knows no field but by its kind.

Objects and lists are written as the `openai` client does, `adapters[name]` and `image[]`, or as
JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.http.json_body import bad_field
from truthgpt_serve.http.multipart import Part
from truthgpt_serve.server.images.fields import Adapters, Kind

FILES = ("image", "mask")


def read_form(
    parts: list[Part], fields: Mapping[str, Kind]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Returns the values of the fields, not yet checked, and the files of each name.

    Raises:
        RequestError: A field is given twice, is not UTF-8, or is a text where a file belongs.
    """
    values: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for part in parts:
        name, _, key = part.name.partition("[")
        if part.is_file or name in FILES:
            if not part.is_file:
                raise bad_field(name, "must be a file, not text")
            # `image`, `image[]` and `image[0]` are one field.
            files.setdefault(name if name in FILES else part.name, []).append(part.data)
        elif name == "adapters":
            values[name] = _joined(values.get(name), key.rstrip("]"), part.text())
        elif part.name in values:
            raise bad_field(part.name, "is given more than once")
        else:
            kind = fields.get(part.name)
            text = part.text()
            values[part.name] = text if kind is None else kind.from_text(text)
    return values, files


def _joined(value: Any, key: str, text: str) -> Any:
    """Returns `adapters` so far with one more part: `adapters[name]`, `adapters[]` or JSON."""
    if key:
        weights = {} if value is None else value
        if not isinstance(weights, dict) or key in weights:
            raise bad_field("adapters", "is given more than once")
        return {**weights, key: Adapters.weight_from_text(text)}
    read = Adapters().from_text(text)
    if value is None:
        return read
    if not isinstance(value, list) or not isinstance(read, list):
        raise bad_field("adapters", "is given more than once")
    return [*value, *read]
