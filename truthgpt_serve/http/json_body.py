"""JSON in and out, and the names of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from truthgpt_serve.errors import RequestError, TooLargeError
from truthgpt_serve.garbage import no_collections
from truthgpt_serve.json_decoding import decode_json
from truthgpt_serve.wording import shown

_encode = msgspec.json.Encoder().encode
MAX_CONTAINERS = 300_000
"""Most lists and objects of a JSON body. More would take a second to read, in which no other
request goes on, and 20 times the memory of the body."""
MAX_VALUES = 1_000_000
"""Most values of a JSON body."""

REST_OF_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_match_some = re.compile(
    rb'[^"]{0,4096}+(?:"%b"[^"]{0,4096}+){0,4096}+' % REST_OF_STRING, re.DOTALL
).match
remove_strings = re.compile(rb'"%b"' % REST_OF_STRING, re.DOTALL).sub


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
    try:
        value = decode_json(body) if len(body) <= MAX_CONTAINERS else _decode_large(body)
    except RecursionError:
        raise not_json("it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise not_json(error) from None
    if not isinstance(value, dict):
        raise RequestError(f"the body must be a JSON object, not {shown(value)}")
    return value


def _decode_large(body: bytes | bytearray) -> Any:
    _check_num_values(body)
    with no_collections():
        return decode_json(body)


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
        containers, commas = _count(remove_strings(b"", some[0]))
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


def model_entry(name: str, created: int, own_name: str) -> dict[str, Any]:
    """Returns a model as `/v1/models` lists it.

    Args:
        name: The name to list: the model's own or an alias.
        created: Seconds since the epoch.
        own_name: The model's own name.
    """
    entry = {"id": name, "object": "model", "created": created, "owned_by": "truthgpt-serve"}
    return entry if name == own_name else {**entry, "alias_of": own_name}
