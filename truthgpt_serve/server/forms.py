"""The parts of a form as the fields and files of a request.

Objects and lists are written as the `openai` client does, `adapters[name]` and `include[]`, or as
JSON text.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from truthgpt_serve.http.multipart import Part
from truthgpt_serve.request_schema import RequestModel, bad_field, read_text


def read_form(
    parts: list[Part], model: type[RequestModel], files: Collection[str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """Returns the values of the fields, not yet checked, and the files of each name.

    Args:
        parts: The form.
        model: What the values are for.
        files: The names of fields that hold files; other files are returned too.

    Raises:
        RequestError: A field is given twice, is not UTF-8, or is a text where a file belongs.
    """
    values: dict[str, Any] = {}
    found: dict[str, list[bytes]] = {}
    for part in parts:
        name, _, key = part.name.partition("[")  # `image`, `image[]` and `image[0]` are one field
        if name in files or (part.is_file and name not in model.model_fields):
            if not part.is_file:
                raise bad_field(name, "must be a file, not text")
            found.setdefault(name if name in files else part.name, []).append(part.data)
        else:
            values[name] = _joined(values.get(name), name, key.rstrip("]"), part, model)
    return values, found


def _joined(before: Any, name: str, key: str, part: Part, model: type[RequestModel]) -> Any:
    """Returns the value of a field so far with one more part of it."""
    if key:
        members = {} if before is None else before
        if isinstance(members, dict) and key not in members:
            return {**members, key: read_text(float, part.text())}
    else:
        field = model.model_fields.get(name)
        value = read_text(None if field is None else field.annotation, part.text())
        if before is None:
            return value
        if isinstance(before, list) and isinstance(value, list):
            return [*before, *value]
    raise bad_field(name, "is given more than once")
