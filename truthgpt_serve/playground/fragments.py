"""Pieces of HTML that the pages show; every text of a user or a model is escaped."""

from __future__ import annotations

import json
from html import escape

from truthgpt_serve.cluster.defaults import KEY_VARIABLE
from truthgpt_serve.playground.code import Sent, to_curl, to_javascript, to_python


def status(text: str) -> str:
    """Returns a line that screen readers announce."""
    return f'<p class="tg-status" role="status">{escape(text)}</p>' if text else ""


def fault(text: str) -> str:
    """Returns an error that screen readers announce at once."""
    return f'<p class="tg-fault" role="alert"><strong>Error:</strong> {escape(text)}</p>'


def code_of(sent: Sent) -> str:
    """Returns the three programs that repeat a request, unless they are too long to be shown."""
    length = len(json.dumps(sent.body, ensure_ascii=False))
    if length > MAX_CODE:
        return f"<p>The request has {length} letters: too many to be shown as code.</p>"
    note = (
        f"<p>The key is read from the environment variable <code>{KEY_VARIABLE}</code>.</p>"
        if sent.has_key
        else ""
    )
    programs = {"curl": to_curl(sent), "Python": to_python(sent), "JavaScript": to_javascript(sent)}
    return note + "".join(_program(name, text) for name, text in programs.items())


MAX_CODE = 100_000
"""Letters of a request that is shown as code."""
NO_CODE = "<p>Send a request first: its code appears here.</p>"


def _program(name: str, text: str) -> str:
    return (
        f'<section class="tg-code"><h3>{name}</h3>'
        f'<button type="button" class="tg-copy" aria-label="Copy the {name} code">Copy</button>'
        f'<pre tabindex="0" role="region" aria-label="{name} code" data-language="{name.lower()}">'
        f"<code>{escape(text)}</code></pre></section>"
    )
