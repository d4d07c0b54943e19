"""Asks a service on this machine whether it is ready, and what its models do."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from truthgpt_serve.cluster.defaults import KEY_VARIABLE

TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 4 << 20
FIRST_PERIOD_S = 0.3
PERIOD_S = 3.0
"""How often the service is asked: while it starts, and later."""
RUNNING, FAILED = "RUNNING", "DEPLOY_FAILED"
"""Ray Serve's states of an application that has come to an end of its start."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What one model does.

    Attributes:
        status: Ray Serve's status of its application.
        message: What it waits for, or why it does not run; empty when there is nothing to say.
    """

    status: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Readiness:
    """What the service says of itself.

    Attributes:
        answered: Whether the router answered.
        ready: Whether all models run.
        models: Each model's state, by its name.
        message: What is wrong with the service itself, or empty.
    """

    answered: bool = False
    ready: bool = False
    models: Mapping[str, ModelStatus] = field(default_factory=dict)
    message: str = ""

    @property
    def settled(self) -> bool:
        """Whether every model runs, or has failed for good."""
        ended = all(model.status in (RUNNING, FAILED) for model in self.models.values())
        return self.ready or (bool(self.models) and ended and not self.message)

    def describe_waiting(self) -> str:
        """Returns what the service waits for, in words."""
        if not self.answered:
            return "Ray and the router"
        waiting = [
            f"{name} ({model.message or model.status})"
            for name, model in self.models.items()
            if model.status != RUNNING
        ]
        return ", ".join(waiting) or self.message or "the router"


def open_local(url: str, timeout_s: float) -> Any:
    """Opens an address of this machine: not through a proxy, whatever the environment says.

    With the key of `TRUTHGPT_API_KEY`, where the service may ask for one.
    """
    request = urllib.request.Request(url)
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key.isascii() and key.isprintable() and key:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=timeout_s)


def ask_ready(address: str) -> Readiness:
    """Asks once."""
    try:
        with open_local(f"{address}/ready", TIMEOUT_S) as answer:
            return _read(answer.read(MAX_ANSWER_BYTES), ready=True)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return _read(error.read(MAX_ANSWER_BYTES), ready=False)
            except (ValueError, OSError, HTTPException):
                return Readiness()
    except (ValueError, OSError, HTTPException):
        return Readiness()


def _read(body: bytes, *, ready: bool) -> Readiness:
    value = json.loads(body)
    models = value.get("models") if isinstance(value, dict) else None
    if not isinstance(models, dict):  # HAProxy's own answer, which knows no models
        return Readiness()
    found = {
        str(name): ModelStatus(str(model.get("status")), _message_of(model))
        for name, model in models.items()
        if isinstance(model, dict)
    }
    return Readiness(True, ready, found, str(value.get("message") or ""))


def _message_of(model: Mapping[str, Any]) -> str:
    return str(model.get("last_error") or model.get("message") or "")


class ReadinessPoll:
    """Asks again and again in a thread of its own: an answer may take seconds.

    Attributes:
        latest: The last answer.
    """

    def __init__(self, address: str) -> None:
        self.latest = Readiness()
        self.period_s = FIRST_PERIOD_S
        self._address = address
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)

    @contextmanager
    def running(self) -> Iterator[ReadinessPoll]:
        """Asks while the body runs; a question that is open then is not waited for."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.latest = ask_ready(self._address)
            self._stopped.wait(self.period_s)


def describe_load() -> str:
    """Returns how busy the machine is, in words; empty when it is not."""
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    return f"; this machine is busy, a load of {load:.0f} on {cores} cores" if load > cores else ""
