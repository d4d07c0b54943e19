"""What `/openapi.json` and `/docs` say: the routes of the one address, from one table.

The schemas of bodies are OpenAI's and are not repeated here.
"""

from __future__ import annotations

import html
from importlib.metadata import version
from typing import Any

from truthgpt_serve import routes
from truthgpt_serve.open_inference import is_open_inference

ROUTES: tuple[tuple[str, str, str], ...] = tuple(
    (method.lower(), route.path, route.summary)
    for route in routes.ROUTES
    if route.documented and "service" in route.places
    for method in route.methods
)


FORM_FILES = {
    "/v1/audio/transcriptions": ("file",),
    "/v1/audio/translations": ("file",),
    "/v1/images/edits": ("image", "mask"),
    "/v1/images/variations": ("image",),
}
"""Routes that take a multipart form, and its files."""


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "data": {"type": "array"},
        "parameters": {"type": "object"},
    },
}
_TENSORS = {
    "application/json": {
        "schema": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "inputs": {"type": "array", "items": _TENSOR},
                "outputs": {"type": "array", "items": {"type": "object"}},
                "parameters": {"type": "object"},
            },
        }
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
"""The body of an inference request: JSON alone, or with tensors as bytes behind it."""


def _error_form(path: str) -> str:
    protocol = is_open_inference(path)
    return "{error: message}" if protocol else "An error in OpenAI's envelope"


def openapi_document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 description of the routes."""
    paths: dict[str, Any] = {}
    for method, path, summary in ROUTES:
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "200": {"description": "The answer"},
                "default": {"description": _error_form(path)},
            },
        }
        if method == "post":
            operation["requestBody"] = {"required": True, "content": _content(path)}
        if "{id}" in path:
            operation["parameters"] = [
                {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
            ]
        paths.setdefault(path, {})[method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "TruthGPT Serve", "version": version("truthgpt-serve")},
        "paths": paths,
    }


def _content(path: str) -> dict[str, Any]:
    """Returns the body that a route takes: only `model`, and files, are ours to describe."""
    if is_open_inference(path):
        return _TENSORS
    properties: dict[str, Any] = {"model": {"type": "string", "description": "A model name"}}
    required = ["model"]
    for name in FORM_FILES.get(path, ()):
        properties[name] = {"type": "string", "format": "binary"}
    if path in FORM_FILES:
        required.append(FORM_FILES[path][0])
    schema = {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": True,
    }
    kind = "multipart/form-data" if path in FORM_FILES else "application/json"
    return {kind: {"schema": schema}}


def _docs_page() -> bytes:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(summary)}</td></tr>"
        for method, path, summary in ROUTES
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>TruthGPT Serve</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:50rem;margin:2rem auto;padding:0 1rem}"
        "td{padding:.2rem 1rem .2rem 0}</style></head><body><h1>TruthGPT Serve</h1>"
        "<p>Every model behind one OpenAI-compatible address: name it as <code>model</code>.</p>"
        f"<table>{rows}</table></body></html>"
    ).encode()


DOCS_HTML = _docs_page()
