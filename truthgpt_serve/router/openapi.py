"""What `/openapi.json` and `/docs` say: the routes of the one address, from one table.

The schemas of bodies are OpenAI's and are not repeated here.
"""

from __future__ import annotations

import html
from importlib.metadata import version
from typing import Any

ROUTES: tuple[tuple[str, str, str], ...] = (
    ("get", "/v1/models", "All models and adapters"),
    ("get", "/v1/models/{id}", "One model and its card"),
    ("post", "/v1/chat/completions", "Chat; server-sent events with `stream`"),
    ("post", "/v1/completions", "Text completion; server-sent events with `stream`"),
    ("post", "/v1/responses", "Responses API, where the model's engine has it"),
    ("post", "/v1/messages", "Anthropic Messages API, where the model's engine has it"),
    ("post", "/v1/embeddings", "Embeddings, where the model's engine has them"),
    ("post", "/v1/infer", "Any family: {model, inputs} to {model, outputs}"),
    ("post", "/tokenize", "Tokens of a text, where the model's engine has it"),
    ("get", "/health", "Whether the router lives"),
    ("get", "/ready", "Whether every model is running"),
    ("get", "/metrics", "Prometheus metrics of this node"),
    ("get", "/openapi.json", "This table as OpenAPI"),
    ("get", "/docs", "This table as a page"),
)


def openapi_document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 description of the routes."""
    paths: dict[str, Any] = {}
    for method, path, summary in ROUTES:
        operation: dict[str, Any] = {
            "summary": summary,
            "responses": {
                "200": {"description": "The answer"},
                "default": {"description": "An error in OpenAI's envelope"},
            },
        }
        if method == "post":
            schema = {
                "type": "object",
                "required": ["model"],
                "properties": {"model": {"type": "string", "description": "A model name"}},
                "additionalProperties": True,
            }
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": schema}},
            }
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
