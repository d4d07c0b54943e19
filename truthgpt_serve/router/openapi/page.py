"""The page `/docs`: the OpenAPI document as HTML, without scripts, complete by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from string import Template
from typing import Any

from truthgpt_serve.router.openapi.document import openapi_document

Json = Mapping[str, Any]

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TruthGPT Serve: routes</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: light-dark(#f2f2f4, #242428);
  --link: light-dark(#0b57b0, #8ab8ff); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; }
a { color: var(--link); }
code, pre { font: 0.875rem/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: 0.75rem; overflow-x: auto; border-radius: 0.375rem; }
details { border-bottom: 1px solid var(--line); padding: 0.375rem 0; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 3.25rem; }
summary code { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: 0.25rem 1rem 0.25rem 0; }
</style></head><body>
<h1>$title</h1>
$intro
<p>All of it for programs: <a href="openapi.json">openapi.json</a>, OpenAPI 3.1.</p>
$sections
</body></html>
""")


@cache
def docs_html() -> bytes:
    """Returns the page."""
    document = openapi_document()
    sections = "".join(_section(document, tag) for tag in document["tags"])
    info = document["info"]
    page = _PAGE.substitute(
        title=escape(f"{info['title']} {info['version']}"),
        intro=_paragraphs(info["description"]),
        sections=sections,
    )
    return page.encode()


def _section(document: Json, tag: Json) -> str:
    operations = "".join(
        _operation(document, method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if tag["name"] in operation["tags"]
    )
    return f"<h2>{escape(tag['name'])}</h2>{_paragraphs(tag['description'])}{operations}"


def _operation(document: Json, method: str, path: str, operation: Json) -> str:
    parts = [_paragraphs(operation.get("description", ""))]
    for parameter in operation.get("parameters", ()):
        found = _resolved(document, parameter)
        parts.append(
            f"<p><code>{escape(found['name'])}</code> ({escape(found['in'])}): "
            f"{_text(found.get('description', ''))}</p>"
        )
    content = operation.get("requestBody", {}).get("content", {})
    for media_type, body in content.items():
        parts.append(f"<h3>Body: <code>{escape(media_type)}</code></h3>")
        parts.append(_fields(document, body["schema"]))
        parts += [_example(path, example) for example in body.get("examples", {}).values()]
    parts.append(f"<h3>Answers</h3>{_answers(document, operation['responses'])}")
    name = operation["operationId"]
    return (
        f'<details id="{escape(name)}"><summary><b>{method.upper()}</b> '
        f"<code>{escape(path)}</code> {_text(operation['summary'])}</summary>"
        f"{''.join(parts)}</details>\n"
    )


def _answers(document: Json, responses: Json) -> str:
    rows = []
    for status, reference in responses.items():
        response = _resolved(document, reference)
        kinds = ", ".join(f"<code>{escape(kind)}</code>" for kind in response.get("content", {}))
        rows.append(
            f"<tr><td>{escape(status)}</td><td>{_text(response['description'])}</td>"
            f"<td>{kinds}</td></tr>"
        )
    return _table(rows, "Status", "Meaning", "Type")


def _example(path: str, example: Json) -> str:
    body = json.dumps(example["value"]).replace("'", "'\\''")
    command = (
        f"curl -sS http://127.0.0.1:8000{path} \\\n  -H 'content-type: application/json' \\\n"
        f"  -d '{body}'"
    )
    return f"<p>{_text(example['summary'])}:</p><pre>{escape(command)}</pre>"


def _fields(document: Json, schema: Json) -> str:
    required, properties = _flattened(document, schema)
    rows = []
    for name, field in properties.items():
        found = _resolved(document, field)
        need = "required" if name in required else ""
        rows.append(
            f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(document, found))}</td>"
            f"<td>{need}</td><td>{_text(found.get('description', ''))}</td></tr>"
        )
    return _table(rows, "Field", "Type", "", "Meaning") if rows else ""


def _flattened(document: Json, schema: Json) -> tuple[set[str], dict[str, Json]]:
    """Returns the required names and the properties of a schema and of all that it is made of."""
    found = _resolved(document, schema)
    required, properties = set(found.get("required", ())), dict(found.get("properties", {}))
    parts = [_flattened(document, part) for part in found.get("allOf", ())]
    choices = [_flattened(document, part) for part in found.get("anyOf", ())]
    required = required.union(*(more for more, _ in parts))
    if choices:
        required |= set.intersection(*(more for more, _ in choices))
    for _, others in (*parts, *choices):
        properties |= {key: field for key, field in others.items() if key not in properties}
    return required, properties


def _kind(document: Json, schema: Json) -> str:
    return " or ".join(dict.fromkeys(_kinds(document, schema))) or "any"


def _kinds(document: Json, schema: Json) -> Iterator[str]:
    for key in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(key, ()):
            yield from _kinds(document, _resolved(document, part))
    if "enum" in schema:
        yield ", ".join(str(value) for value in schema["enum"] if value is not None)
        return
    kinds = schema.get("type", ())
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if schema.get("format") == "binary":
            yield "file"
        elif kind == "array" and "items" in schema:
            yield f"list of {_kind(document, _resolved(document, schema['items']))}"
        elif kind != "null":
            yield kind + _bounds(schema, kind)


def _bounds(schema: Json, kind: str) -> str:
    if kind not in ("integer", "number"):
        return ""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    words = [] if low is None else [f"above {low}" if "minimum" not in schema else f"from {low}"]
    if "maximum" in schema:
        words.append(f"to {schema['maximum']}")
    return f" {' '.join(words)}" if words else ""


def _resolved(document: Json, value: Json) -> Json:
    """Follows a reference inside the document."""
    while "$ref" in value:
        found: Any = document
        for key in value["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        value = found
    return value


def _table(rows: list[str], *names: str) -> str:
    head = "".join(f"<th scope='col'>{name}</th>" if name else "<td></td>" for name in names)
    return f"<div class='scroll' tabindex='0'><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{_text(part)}</p>" for part in text.split("\n\n") if part.strip())


def _text(text: str) -> str:
    """Returns a text as HTML: its `code`, **strong** and *slanted* words marked."""
    pieces = escape(text.strip(), quote=False).split("`")
    for index, piece in enumerate(pieces):
        if index % 2:
            pieces[index] = f"<code>{piece}</code>"
        else:
            strong = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", piece, flags=re.DOTALL)
            pieces[index] = re.sub(r"\*(\w+?)\*", r"<em>\1</em>", strong)
    return "".join(pieces)
