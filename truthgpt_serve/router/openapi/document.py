"""Joins the YAML files of this folder to one OpenAPI 3.1 document.

A file has `paths` and `components` as OpenAPI writes them, and in short forms:

- Summaries come from `truthgpt_serve.http.routes`.
- `errors` of an operation are the statuses that it may have beside its own `responses`; those of an
  operation with POST are the same everywhere.
- `events` of a stream is the schema of their data; `done` says that it ends with `[DONE]`.
- The schema `{or_null: Other}` is `Other` with null as a value of each field that is not required,
  which JSON has and a form has not.
"""

from __future__ import annotations

import copy
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import yaml

from truthgpt_serve.access.gate import OPEN_AT_SERVICE
from truthgpt_serve.errors import AuthenticationError, OverloadedError, UnavailableError
from truthgpt_serve.http.envelope import is_anthropic
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.open_inference import is_open_inference
from truthgpt_serve.http.routes import ROUTES

SERVED = tuple(route for route in ROUTES if "service" in route.addresses)
"""The routes that the document describes."""

ERRORS = {
    400: "A field is missing, wrong, or asks for what this model does not do.",
    401: "The service asks for an API key, and the request carries none that counts.",
    403: "The API key may not do this.",
    404: "The model, or the file, does not exist.",
    408: "The request body did not arrive in time.",
    410: "The file's time is over.",
    413: "The body, or an image in it, is too large.",
    415: "The body is compressed in a way that is not supported.",
    422: "The model's process died twice while it served this request.",
    429: "The model's queue is full.",
    500: "The model's code failed; its log has the cause under the answer's `x-request-id`.",
    502: "What works for this service died, or answered something that is not HTTP.",
    503: "The model is starting, or failed to start.",
    504: "The model did not answer in time.",
}
"""What each status means, whatever the route."""

POST_ERRORS = (400, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
_RETRIED = (OverloadedError.status, UnavailableError.status)
_SCHEMAS = ("Error", "MessagesError", "InferenceError")
_STREAM = "text/event-stream"
_REQUEST_ID = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}


def openapi_document() -> dict[str, Any]:
    """Returns the document; the caller may change it."""
    return copy.deepcopy(_document())


@cache
def openapi_json() -> bytes:
    """Returns the document as JSON."""
    return encode_json(_document())


@cache
def _document() -> dict[str, Any]:
    head, paths, components = _read_files()
    head["info"]["version"] = version("truthgpt-serve")
    components["responses"] = {
        f"{schema}{status}": _error(status, schema) for schema in _SCHEMAS for status in ERRORS
    }
    schemas = components["schemas"]
    for name, schema in schemas.items():
        if "or_null" in schema:
            schemas[name] = _or_null(schemas[schema["or_null"]])
    for route in SERVED:
        for method in route.methods:
            _complete(paths[route.path][method.lower()], method, route.path, route.summary)
    return {**head, "paths": paths, "components": components}


def _read_files() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns the document's head, its paths in the order of the routes, and its components."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    head: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    components: dict[str, Any] = {}
    for file in sorted(files(__package__).iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".yaml"):
            continue
        part = yaml.load(file.read_text("utf-8"), loader)
        head |= part.get("document", {})
        _add(paths, part.get("paths", {}), file.name)
        for kind, items in part.get("components", {}).items():
            _add(components.setdefault(kind, {}), items, file.name)
    order = [route.path for route in SERVED]
    return head, {path: paths[path] for path in order if path in paths} | paths, components


def _add(into: dict[str, Any], items: dict[str, Any], file: str) -> None:
    if twice := into.keys() & items.keys():
        raise ValueError(f"{file}: {', '.join(sorted(twice))} is in another file too")
    into |= items


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: field if name in schema.get("required", ()) else _widened(field)
        for name, field in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def _widened(field: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in field:
        return {**field, "anyOf": [*field["anyOf"], {"type": "null"}]}
    enum = {"enum": [*field["enum"], None]} if "enum" in field else {}
    return {**field, "type": [field["type"], "null"], **enum}


def _error(status: int, schema: str) -> dict[str, Any]:
    headers = dict(_REQUEST_ID)
    if status in _RETRIED:
        headers["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": ERRORS[status], "headers": headers, "content": content}


def _complete(operation: dict[str, Any], method: str, path: str, summary: str) -> None:
    """Adds what all operations have: the summary, the errors, the header of every answer."""
    operation["summary"] = summary
    schema = _SCHEMAS[2 if is_open_inference(path) else 1 if is_anthropic(path) else 0]
    responses = {
        status: _answer(response, schema) for status, response in operation["responses"].items()
    }
    errors = operation.pop("errors", POST_ERRORS if method == "POST" else ())
    for status in errors if path in OPEN_AT_SERVICE else (AuthenticationError.status, *errors):
        responses[str(status)] = {"$ref": f"#/components/responses/{schema}{status}"}
    operation["responses"] = dict(sorted(responses.items()))


def _answer(response: dict[str, Any], error: str) -> dict[str, Any]:
    answer = {**response, "headers": {**_REQUEST_ID, **response.get("headers", {})}}
    stream = response.get("content", {}).get(_STREAM)
    if stream is not None:
        schema = _events(stream["events"], error, done=stream.get("done", False))
        answer["content"] = {**response["content"], _STREAM: {"schema": schema}}
    return answer


def _events(data: dict[str, Any], error: str, *, done: bool) -> dict[str, Any]:
    """Returns the schema of one event of a stream, which OpenAPI 3.1 leaves to conventions.

    An event is an object of its fields, `data` as a text; so OpenAPI 3.2 has it under `itemSchema`.
    """
    payload = {"anyOf": [data, {"$ref": f"#/components/schemas/{error}"}]}
    text = {"type": "string", "contentMediaType": "application/json", "contentSchema": payload}
    event = {"type": "object", "required": ["data"], "properties": {"data": text}}
    ends = [{"$ref": "#/components/schemas/Done"}] if done else []
    return {"description": "Each event of the stream.", "anyOf": [*ends, event]}
