"""JSON in and out, and the fields that every request has.

Knows nothing of models, servers or Ray.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from truthgpt_serve.errors import RequestError, TooLargeError

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_MAX_EXACT = 2**53
"""Up to this, every whole number is a float of its own."""
MAX_CONTAINERS = 300_000
"""Most lists and objects of a JSON body. More would take a second to read, in which no other
request goes on, and 20 times the memory of the body."""
MAX_VALUES = 1_000_000
"""Most values of a JSON body."""

_REST_OF_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_match_some = re.compile(
    rb'[^"]{0,4096}+(?:"%b"[^"]{0,4096}+){0,4096}+' % _REST_OF_STRING, re.DOTALL
).match
_remove_strings = re.compile(rb'"%b"' % _REST_OF_STRING, re.DOTALL).sub


def encode_json(value: Any) -> bytes:
    """Returns `value` as JSON; half a surrogate pair in a text becomes a question mark."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_mend(value))


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_mend(key): _mend(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mend(item) for item in value]
    return value


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        RequestError: The body is empty, is not JSON, or is another kind of value.
        TooLargeError: It has more than `MAX_CONTAINERS` or `MAX_VALUES`.
    """
    if not body:
        raise RequestError("the request has no body; send a JSON object")
    if len(body) > MAX_CONTAINERS:
        _check_num_values(body)
    try:
        value = _decode(body)
    except RecursionError:
        raise not_json("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(error) from None
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {kind_of(value)}")
    return value


def not_json(detail: object) -> RequestError:
    """Returns the error for a body that is not JSON, ready to raise."""
    return RequestError(f"the request body is not valid JSON: {detail}")


def _check_num_values(body: bytes | bytearray) -> None:
    num_containers, num_commas = _count(body)
    if num_containers <= MAX_CONTAINERS and num_containers + num_commas <= MAX_VALUES:
        return  # with those in strings, too
    num_containers = num_commas = start = 0
    while (some := _match_some(body, start)) is not None and some.end() > start:
        start = some.end()
        containers, commas = _count(_remove_strings(b"", some[0]))
        num_containers += containers
        num_commas += commas
        if num_containers > MAX_CONTAINERS:
            raise _too_many(MAX_CONTAINERS, "lists and objects")
        if num_containers + num_commas > MAX_VALUES:
            raise _too_many(MAX_VALUES, "values")


def _count(data: bytes | bytearray) -> tuple[int, int]:
    return data.count(b"[") + data.count(b"{"), data.count(b",")


def _too_many(limit: int, what: str) -> TooLargeError:
    return TooLargeError(
        f"the body has more than {limit} {what}, the most that a JSON request may have: send less "
        "at a time, or large arrays as binary tensors"
    )


def parse_model(body: Mapping[str, Any]) -> str:
    """Returns the request's `model`.

    Raises:
        RequestError: It is missing, empty or no string.
    """
    model = body.get("model")
    if model is None:
        raise bad_field("model", "is required; GET /v1/models lists the names")
    if not isinstance(model, str) or not model:
        raise bad_field("model", f"must be a non-empty string, not {shown(model)}")
    return model


def model_names(name: str, cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names that clients may send for a model: its own, then its aliases.

    Args:
        name: The model name.
        cfg: The configuration as a nested dict.
    """
    serving = cfg.get("serving") or {}
    return (name, *(serving.get("aliases") or ()))


def parse_stream(body: Mapping[str, Any]) -> bool:
    """Returns the request's `stream`; raises RequestError when it is no boolean."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_field("stream", f"must be true or false, not {shown(stream)}")
    return bool(stream)


def as_whole(value: Any) -> int | None:
    """Returns a whole number, which JSON may write as `2.0` too, or None for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
        return int(value)
    return value if type(value) is int else None


def bad_field(param: str, message: str) -> RequestError:
    """Returns the error that names one field, ready to raise."""
    return RequestError(f"`{param}` {message}", param=param)


def kind_of(value: Any) -> str:
    """Names the JSON type of a value."""
    names = {str: "a string", list: "a list", bool: "a boolean", dict: "an object"}
    if value is None:
        return "null"
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Shows a value of a request in a message without repeating a long one."""
    if isinstance(value, list | dict) or value is None:
        return kind_of(value)
    if isinstance(value, str):
        return f"{value[:40]!r}" + ("…" if len(value) > 40 else "")
    return str(value).lower() if isinstance(value, bool) else str(value)[:40]
