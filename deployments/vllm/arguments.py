"""Checks `serving.engine` against the engine's own arguments, from a committed list.

Imports no engine: `scripts/generate_engine_arguments.py` writes the list from the engine's argument
parser.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from truthgpt_serve.wording import suggest

_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]")
_SIZE = re.compile(r"\d+(\.\d+)?[kmgt]|\d+[KMGT]?")


@functools.cache
def load_arguments() -> dict[str, dict[str, Any]]:
    """Returns the rows by name: `kind`, `help`, and perhaps `bounds`, `choices` and `known`."""
    text = files("deployments.vllm").joinpath("engine_arguments.json").read_text(encoding="utf-8")
    return {row["name"]: row for row in json.loads(text)}


_ELSEWHERE: dict[str, str] = {
    "api_server_count": "set `serving.num_replicas`: each replica is one API server",
    "attention_backend": "set `model_optim.attention`",
    "config": "write its settings under `serving.engine`",
    "device_ids": "set `hardware.gpus`: Ray chooses the devices",
    "disable_access_log_for_endpoints": "the access log is always off in a replica",
    "disable_uvicorn_access_log": "the access log is always off in a replica",
    "distributed_executor_backend": "set `hardware.gpus`: more than one GPU uses Ray's placement",
    "dtype": "set `model_optim.dtype`",
    "enable_lora": "list the adapters in `serving.adapters`",
    "headless": "set `serving.num_replicas`: replicas take the place of headless nodes",
    "host": "set `http_options.host` of the Serve file",
    "lora_modules": "list the adapters in `serving.adapters`",
    "model": "set `model.name_or_path`",
    "model_tag": "set `model.name_or_path`",
    "port": "set `http_options.port` of the Serve file",
    "quantization": "set `model_optim.quantization`",
    "revision": "set `model.revision`",
    "root_path": "it follows the application's name, /models/<name>",
    "seed": "set the top-level `seed`",
    "served_model_name": "it is the application's name in the Serve file, and `serving.aliases`",
    "uds": "set `http_options` of the Serve file",
    "worker_cls": "the engine chooses its workers by the hardware",
}
_ELSEWHERE_BY_PREFIX: dict[str, str] = {
    "api_key": "put it in front of the service: a replica is reached only through the router",
    "data_parallel_": "set `serving.num_replicas`: replicas are the data parallelism",
    "dp_supervisor_": "set `serving.num_replicas`: Ray Serve supervises the replicas",
    "enable_ssl": "end TLS in front of the service",
    "grpc": "set `grpc_options` of the Serve file",
    "h11_": "Ray Serve owns the HTTP server: set `http_options` of the Serve file",
    "master_": "Ray connects the nodes: set `hardware.gpus`",
    "nnodes": "Ray connects the nodes: set `hardware.gpus`",
    "node_rank": "Ray connects the nodes: set `hardware.gpus`",
    "ssl_": "end TLS in front of the service",
    "uvicorn_": "Ray Serve owns the HTTP server: set `logging_config` of the Serve file",
}


def set_elsewhere(name: str) -> str | None:
    """Returns where an argument is set that the product sets itself, or None if it may be given."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    return next((f for p, f in _ELSEWHERE_BY_PREFIX.items() if name.startswith(p)), None)


@functools.cache
def open_arguments() -> tuple[str, ...]:
    """Returns the names that `serving.engine` may hold."""
    return tuple(name for name in load_arguments() if set_elsewhere(name) is None)


def find_faults(engine: Mapping[Any, Any]) -> dict[str, str]:
    """Returns at most one message for each key of `serving.engine`."""
    faults = {str(key): fault for key, value in engine.items() if (fault := _fault(key, value))}
    for key, fault in _cross_faults(engine):
        faults.setdefault(key, fault)
    return faults


def _fault(key: Any, value: Any) -> str | None:
    row = load_arguments().get(key)
    if row is None:
        return _unknown(key)
    elsewhere = set_elsewhere(key)
    if elsewhere is not None:
        return f"the product sets the engine argument {key!r} itself: {elsewhere}"
    if value is None:
        return None
    expected, accepts = _KINDS[row["kind"]]
    if not accepts(value):
        return f"engine argument {key!r} must be {expected}, not {value!r}"
    return _out_of_bounds(row, value) or _bad_choice(row, value)


def _unknown(key: Any) -> str:
    name = str(key)
    fix = name.lstrip("-").replace("-", "_").lower()
    known = load_arguments() if fix in load_arguments() else open_arguments()
    hint = suggest(fix, known, "see `vllm serve --help=all` for all of them")
    return f"the engine has no argument {name!r}; {hint}"


def _out_of_bounds(row: Mapping[str, Any], value: Any) -> str | None:
    if not _is_number(value):
        return None
    for bound, limit in row.get("bounds", {}).items():
        words, holds = _BOUNDS[bound]
        if not holds(value, limit):
            return f"engine argument {row['name']!r} must be {words} {limit}, not {value!r}"
    return None


def _bad_choice(row: Mapping[str, Any], value: Any) -> str | None:
    choices = row.get("choices")
    if not choices:
        return None
    for item in value if isinstance(value, list) else [value]:
        if item not in choices:
            listed = ", ".join(str(choice) for choice in choices)
            return f"engine argument {row['name']!r} must be one of {listed}, not {item!r}"
    return None


def _cross_faults(engine: Mapping[Any, Any]) -> list[tuple[str, str]]:
    faults = []
    if engine.get("enable_auto_tool_choice") and not engine.get("tool_call_parser"):
        message = "needs `tool_call_parser`, the parser that fits the model, such as 'hermes'"
        faults.append(("enable_auto_tool_choice", f"enable_auto_tool_choice {message}"))
    for key, plugin in (
        ("tool_call_parser", "tool_parser_plugin"),
        ("reasoning_parser", "reasoning_parser_plugin"),
    ):
        value, known = engine.get(key), load_arguments()[key].get("known", [])
        if value and not engine.get(plugin) and value not in known:
            faults.append((key, f"the engine has no {key} {value!r}; {suggest(value, known)}"))
    key = "allowed_media_domains"
    for domain in engine.get(key) or []:
        if isinstance(domain, str) and not _DOMAIN.fullmatch(domain):
            message = f"{domain!r} is not a host name alone, such as 'images.example.com'"
            faults.append((key, f"{key}: {message}"))
    return faults


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_size(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in ("auto", "-1") or _SIZE.fullmatch(value) is not None
    return _is_integer(value)


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(map(accepts, value))


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "integer": ("a whole number", _is_integer),
    "number": ("a number", _is_number),
    "size": ("a whole number, or one with a suffix such as '8k' or '2G'", _is_size),
    "string": ("a string", _is_string),
    "mapping": ("a mapping", _is_mapping),
    "string or mapping": ("a string or a mapping", lambda v: _is_string(v) or _is_mapping(v)),
    "string or integer": ("a string or a whole number", lambda v: _is_string(v) or _is_integer(v)),
    "list of string": ("a list of strings", _list_of(_is_string)),
    "list of integer": ("a list of whole numbers", _list_of(_is_integer)),
    "json list": ("a list of strings", _list_of(_is_string)),
}
"""For each kind of the list: how it is called in a message, and what it accepts."""

_BOUNDS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "exclusiveMinimum": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "exclusiveMaximum": ("below", operator.lt),
}
"""For each bound, by its name in JSON Schema: its words in a message, and its comparison."""

JSON_TYPES: dict[str, dict[str, Any]] = {
    "flag": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "size": {"type": ["integer", "string"]},
    "string": {"type": "string"},
    "mapping": {"type": "object"},
    "string or mapping": {"type": ["string", "object"]},
    "string or integer": {"type": ["string", "integer"]},
    "list of string": {"type": "array", "items": {"type": "string"}},
    "list of integer": {"type": "array", "items": {"type": "integer"}},
    "json list": {"type": "array", "items": {"type": "string"}},
}
"""The JSON Schema of each kind."""
