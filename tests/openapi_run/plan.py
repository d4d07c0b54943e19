"""Which models a service has, and its document with what would otherwise never be generated.

A generated name of a model would be refused before any other field is read, and so would generated
bytes instead of a file, and tools of most models. Answers are short, because they take the time.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import httpx

Json = dict[str, Any]
ENGINE = "vllm"
"""The family whose models have the routes that only an engine has."""
TIMEOUT_S = 60
MAX_TOKENS = 8
_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_TOOLS = ("tools", "tool_choice")
_FILES = {"file": "recording", "mask": "mask"}
"""Formats, of `hooks.py`, of fields with files. Schemathesis has images of its own."""
_SCHEMA = re.compile(r'"#/components/schemas/(\w+)"')


class Model(NamedTuple):
    """A model or adapter of the service."""

    name: str
    task: str
    family: str


def fetch_models(url: str) -> list[Model]:
    """Asks a service for its models."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        names = [
            model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]
        ]
        pages = {name: client.get(f"/v1/models/{name}") for name in names}
    for page in pages.values():
        assert page.status_code == 200, page.text
    cards = {name: page.json()["card"] for name, page in pages.items()}
    return [
        Model(name, str(card.get("task", "")), str(card.get("family", "")))
        for name, card in cards.items()
    ]


def _is_engine(model: Model) -> bool:
    return model.family == ENGINE


GROUPS: tuple[tuple[str, Any], ...] = (
    (
        r"/v1/((chat/)?completions|responses|messages)",
        lambda model: model.task == "text-generation",
    ),
    (
        r"/v1/(chat/completions/batch|messages/count_tokens)",
        lambda model: model.task == "text-generation" and _is_engine(model),
    ),
    (r"/(de)?tokenize", _is_engine),
    (r"/v1/embeddings", lambda model: model.task == "embedding"),
    (
        r"/(v1/rerank|rerank|v1/score|score|pooling|classify)",
        lambda model: model.task == "embedding" and _is_engine(model),
    ),
    (r"/v1/images/.*", lambda model: model.task == "image-generation"),
    (r"/v1/audio/.*", lambda model: model.task == "custom"),
    (r"/v2/models/.*", lambda model: model.task == "tensor"),
    (r".*", lambda model: True),
)
"""Paths, and which models can answer there; the first that fits a path counts."""


def narrowed(document: Json, models: Iterable[Model]) -> Json:
    """Returns the document with the names of models as the only values of `model`.

    Args:
        document: What the service says at `/openapi.json`.
        models: Its models; where none can answer on a route, it is asked of all.
    """
    models = list(models)
    document = copy.deepcopy(document)
    _narrow_fields(document["components"]["schemas"])
    for path, methods in document["paths"].items():
        group = next(at for at, (paths, _) in enumerate(GROUPS) if re.fullmatch(paths, path))
        fits = GROUPS[group][1]
        names = [model.name for model in models if fits(model)] or [model.name for model in models]
        for operation in methods.values():
            _narrow_path(document, operation, names)
            if "requestBody" in operation:
                _narrow_body(document, operation["requestBody"], names, f"_{group}")
    return document


def _narrow_fields(schemas: Json) -> None:
    for schema in schemas.values():
        for part in (schema, *schema.get("allOf", ())):
            fields = part.get("properties", {})
            for name in _TOOLS:
                fields.pop(name, None)
            for name in fields.keys() & _TOKENS:
                fields[name] = {"type": "integer", "minimum": 1, "maximum": MAX_TOKENS}
                part["required"] = sorted({*part.get("required", ()), name})
            for name in fields.keys() & _FILES:
                fields[name] = {"type": "string", "format": _FILES[name]}


def _narrow_path(document: Json, operation: Json, names: list[str]) -> None:
    if {"$ref": "#/components/parameters/ModelId"} in operation.get("parameters", ()):
        parameter = copy.deepcopy(document["components"]["parameters"]["ModelId"])
        parameter["schema"]["enum"] = names
        parameter["example"] = names[0]
        others = [one for one in operation["parameters"] if "ModelId" not in one.get("$ref", "")]
        operation["parameters"] = [parameter, *others]


def _narrow_body(document: Json, body: Json, names: list[str], suffix: str) -> None:
    """Gives a body schemas of its own, in which `model` is one of the names."""
    schemas = document["components"]["schemas"]
    for content in body["content"].values():
        for name in _reached(schemas, content["schema"]):
            schemas[name + suffix] = _renamed(schemas[name], suffix)
        schemas["ModelName" + suffix] = {"type": "string", "enum": names}
        content["schema"] = _renamed(content["schema"], suffix)
        for example in content.get("examples", {}).values():
            if example["value"].get("model", names[0]) not in names:
                example["value"]["model"] = names[0]


def _reached(schemas: Json, schema: Json) -> set[str]:
    found: set[str] = set()
    waiting = set(_SCHEMA.findall(json.dumps(schema)))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(_SCHEMA.findall(json.dumps(schemas[name]))) - found
    return found


def _renamed(schema: Json, suffix: str) -> Json:
    text = _SCHEMA.sub(rf'"#/components/schemas/\g<1>{suffix}"', json.dumps(schema))
    renamed: Json = json.loads(text)
    return renamed
