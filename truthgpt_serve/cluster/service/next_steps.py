"""Says what a service that runs has, and what to try: an address, its models, three commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from truthgpt_serve.cluster.service.readiness import open_local

TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 1 << 20
MAX_MODELS = 20
"""Models that are listed; of the others only the number is told."""

_IMAGE_PROMPT = "a big red star in the top left"
_CHAT = "Tell me a story about a fox"


def program_name() -> str:
    """Returns how the command line is called from this shell."""
    program = Path(sys.executable).with_name("truthgpt")
    if shutil.which("truthgpt") == str(program) or not program.exists():
        return "truthgpt"
    near = os.path.relpath(program)
    return near if len(near) < len(str(program)) else str(program)


def describe_service(
    address: str, seconds: Mapping[str, float], *, playground: bool = False
) -> list[str]:
    """Returns lines for a terminal.

    Args:
        address: Where the service answers.
        seconds: How long each model that runs took to start.
        playground: Whether the service has the pages at `/ui`.
    """
    cards = {name: _fetch_card(address, name) for name in list(seconds)[:MAX_MODELS]}
    width = max((len(name) for name in cards), default=0)
    lines = [
        f"  {name:<{width}}  {card.get('task', ''):<17} {card.get('family', ''):<16} "
        f"running after {seconds[name]:.0f} s"
        for name, card in cards.items()
    ]
    if len(seconds) > len(cards):
        lines.append(f"  and {len(seconds) - len(cards)} more")
    if playground:
        lines.append(f"playground: {address}/ui")
    commands = suggest_commands(address, {name: card.get("task") for name, card in cards.items()})
    return [*lines, "Try:", *(f"  {command}" for command in commands)]


def suggest_commands(address: str, tasks: Mapping[str, Any]) -> list[str]:
    """Returns three commands for a service with these models."""
    program = program_name()
    by_task = {task: name for name, task in reversed(list(tasks.items()))}
    commands = []
    if text := by_task.get("text-generation"):
        commands.append(f"{program} chat {shlex.quote(text)}")
    if image := by_task.get("image-generation"):
        commands.append(f'{program} image {shlex.quote(image)} "{_IMAGE_PROMPT}"')
    commands.append(f"{program} models --watch")
    if text and len(commands) < 3:
        body = json.dumps({"model": text, "messages": [{"role": "user", "content": _CHAT}]})
        kind = "-H 'content-type: application/json'"
        commands.append(f"curl {address}/v1/chat/completions {kind} -d {shlex.quote(body)}")
    if len(commands) < 3:
        commands.append(f"curl {address}/v1/models")
    return commands


def _fetch_card(address: str, name: str) -> dict[str, Any]:
    url = f"{address}/v1/models/{quote(name)}"
    try:
        with open_local(url, TIMEOUT_S) as answer:
            value = json.loads(answer.read(MAX_ANSWER_BYTES))
    except (ValueError, OSError, HTTPException):
        return {}
    card = value.get("card") if isinstance(value, dict) else None
    return card if isinstance(card, dict) else {}
