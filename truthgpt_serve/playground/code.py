"""Shows a request as code: curl, Python and JavaScript that send exactly what a page has sent.

The API key is never in it: the code reads the environment variable `TRUTHGPT_API_KEY`.
"""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.cluster.defaults import KEY_VARIABLE

LINE = 88


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that a page has sent.

    Attributes:
        url: Its whole address.
        body: What was sent as JSON, or the fields of a form.
        has_key: Whether an API key went with it.
        file: Name of the file that a form has, or None where the body is JSON.
    """

    url: str
    body: Mapping[str, Any]
    has_key: bool = False
    file: str | None = None


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of the `openai` package: its name, its own arguments, and the lines that show."""

    name: str
    arguments: frozenset[str]
    show: tuple[str, ...]
    show_stream: tuple[str, ...] = ()


_METHODS = {
    "/v1/chat/completions": _Method(
        "chat.completions.create",
        frozenset(
            ["model", "messages", "temperature", "top_p", "max_tokens", "seed", "stop", "stream"]
        )
        | {"stream_options"},
        ("print(answer.choices[0].message.content)",),
        (
            "for chunk in answer:",
            "    if chunk.choices:",
            '        print(chunk.choices[0].delta.content or "", end="", flush=True)',
            "print()",
        ),
    ),
    "/v1/images/generations": _Method(
        "images.generate",
        frozenset(["model", "prompt", "n", "size", "stream", "partial_images"]),
        (
            "for number, image in enumerate(answer.data):",
            '    with open(f"image-{number}.png", "wb") as file:',
            "        file.write(base64.b64decode(image.b64_json))",
        ),
        (
            "for event in answer:",
            '    if event.type == "image_generation.completed":',
            '        number = getattr(event, "index", 0)',
            '        with open(f"image-{number}.png", "wb") as file:',
            "            file.write(base64.b64decode(event.b64_json))",
        ),
    ),
    "/v1/embeddings": _Method(
        "embeddings.create",
        frozenset({"model", "input", "encoding_format"}),
        ("for item in answer.data:", "    print(item.index, item.embedding[:4])"),
    ),
    "/v1/audio/transcriptions": _Method(
        "audio.transcriptions.create",
        frozenset(["model", "language", "prompt", "temperature", "response_format"]),
        ("print(answer.text)",),
    ),
}


def to_curl(sent: Sent) -> str:
    """Returns a command for a shell."""
    parts = [f"curl -sS{'N' if sent.body.get('stream') else ''} {shlex.quote(sent.url)}"]
    if sent.has_key:
        parts.append(f'-H "Authorization: Bearer ${KEY_VARIABLE}"')
    if sent.file is None:
        parts.append("-H 'content-type: application/json'")
        parts.append(f"-d {shlex.quote(json.dumps(sent.body, ensure_ascii=False))}")
    else:
        parts.append(f"-F {shlex.quote(f'file=@{sent.file}')}")
        parts += [
            # --form-string: a value that begins with @ or < is no file.
            f"--form-string {shlex.quote(f'{name}={value}')}"
            for name, value in sent.body.items()
        ]
    return " \\\n  ".join(parts)


def to_python(sent: Sent) -> str:
    """Returns a program with the `openai` package."""
    base, path = _split(sent.url)
    method = _METHODS[path]
    key = f'os.environ["{KEY_VARIABLE}"]' if sent.has_key else '"not-checked"'
    lines = ["import base64"] if "base64" in "".join(method.show) else []
    lines += ["import os"] if sent.has_key else []
    lines += [""] if lines else []
    lines += [
        "from openai import OpenAI",
        "",
        f"client = OpenAI(base_url={_literal(f'{base}/v1')}, api_key={key})",
    ]
    known = {name: value for name, value in sent.body.items() if name in method.arguments}
    extra = {name: value for name, value in sent.body.items() if name not in method.arguments}
    lines.append(f"answer = client.{method.name}(")
    if sent.file is not None:
        lines.append(f'    file=open({_literal(sent.file)}, "rb"),')
    lines += [f"    {name}={_python(value, 4)}," for name, value in known.items()]
    lines += [f"    extra_body={_python(extra, 4)},"] if extra else []
    lines.append(")")
    lines += method.show_stream if sent.body.get("stream") else method.show
    return "\n".join(lines)


def to_javascript(sent: Sent) -> str:
    """Returns a module for Node.js or a browser."""
    headers = {} if sent.file is not None else {"content-type": '"application/json"'}
    if sent.has_key:
        headers["authorization"] = f"`Bearer ${{process.env.{KEY_VARIABLE}}}`"
    lines = []
    if sent.file is not None:
        lines += [
            'import { openAsBlob } from "node:fs";',
            "",
            "const form = new FormData();",
            f'form.set("file", await openAsBlob({_quote(sent.file)}), {_quote(sent.file)});',
            *(f"form.set({_quote(k)}, {_quote(str(v))});" for k, v in sent.body.items()),
        ]
    lines += [f"const answer = await fetch({_quote(sent.url)}, {{", '  method: "POST",']
    if headers:
        inner = ", ".join(f"{json.dumps(name)}: {value}" for name, value in headers.items())
        lines.append(f"  headers: {{ {inner} }},")
    if sent.file is None:
        body = json.dumps(sent.body, ensure_ascii=False, indent=2).replace("\n", "\n  ")
        lines.append(f"  body: JSON.stringify({_safe(body)}),")
    else:
        lines.append("  body: form,")
    lines.append("});")
    lines += _read_javascript(bool(sent.body.get("stream")))
    return "\n".join(lines)


def _read_javascript(stream: bool) -> list[str]:
    if not stream:
        return ["console.log(await answer.json());"]
    return [
        "for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {",
        "  console.log(piece); // server-sent events",
        "}",
    ]


def _split(url: str) -> tuple[str, str]:
    base, mark, rest = url.rpartition("/v1/")
    return base, f"{mark}{rest}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def _python(value: Any, indent: int) -> str:
    if isinstance(value, str):
        return _literal(value)
    text = pprint.pformat(value, width=LINE - indent - 16, sort_dicts=False)
    return text.replace("\n", "\n" + " " * (indent + 4))


def _quote(text: str) -> str:
    return _safe(json.dumps(text, ensure_ascii=False))


def _safe(text: str) -> str:
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
