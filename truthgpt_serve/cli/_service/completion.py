"""Completes the names of models in a shell, when the service answers at once."""

from __future__ import annotations

import json
import time

import click

from truthgpt_serve.cli._service.address import find_address, read_key
from truthgpt_serve.terminal import clean

TIMEOUT_S = 0.3
MAX_BYTES = 1 << 20
PIECE_BYTES = 1 << 16


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns the names of models and adapters that begin so; none where no service answers."""
    from http.client import HTTPException

    try:
        names = _fetch_names()
    except (OSError, HTTPException, ValueError, KeyError, TypeError, click.ClickException):
        return []
    return [name for name in names if name.startswith(incomplete)]


def _fetch_names() -> list[str]:
    import urllib.request  # `--help` needs none of it

    address, key = find_address(), read_key()
    request = urllib.request.Request(f"{address.url}/v1/models")
    if key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    proxies = urllib.request.ProxyHandler({}) if address.is_loopback else None
    opener = urllib.request.build_opener(*([proxies] if proxies else []))
    deadline = time.monotonic() + TIMEOUT_S
    data = b""
    with opener.open(request, timeout=TIMEOUT_S) as answer:
        while piece := answer.read1(PIECE_BYTES):
            data += piece
            if len(data) > MAX_BYTES or time.monotonic() > deadline:
                return []
    names = [str(entry["id"]) for entry in json.loads(data)["data"]]
    return [name for name in names if clean(name) == name]
