"""Asks a service on this machine whether it is ready, and for what it waits."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 1 << 20


def ask_ready(address: str) -> tuple[bool, str]:
    """Returns whether the service is ready, and what it waits for, in words."""
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=TIMEOUT_S):
            return True, ""
    except urllib.error.HTTPError as error:
        with error:
            try:
                return False, _describe(json.loads(error.read(MAX_ANSWER_BYTES)))
            except (ValueError, OSError, HTTPException):
                return False, "the router"
    except (OSError, HTTPException):
        return False, "Ray and the router"


def _describe(answer: Any) -> str:
    models = answer.get("models") if isinstance(answer, dict) else None
    waiting = [
        f"{name} ({model.get('message') or model.get('status')})"
        for name, model in (models or {}).items()
        if isinstance(model, dict) and model.get("status") != "RUNNING"
    ]
    return ", ".join(waiting) or "the router"


def describe_load() -> str:
    """Returns how busy the machine is, in words; empty when it is not."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"; this machine is busy, a load of {load:.0f} on {cores} cores" if load > cores else ""
