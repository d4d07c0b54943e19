"""What the service says of its models: state, load, speed and memory, each where it is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from truthgpt_serve.cli._service.client import ServiceClient, model_path
from truthgpt_serve.cli._service.failures import ServiceFault, text_of
from truthgpt_serve.cli._service.scrape import Samples
from truthgpt_serve.prometheus import REPLICA_MEMORY, REPLICA_REQUESTS

MAX_AT_ONCE = 8
CAPABILITIES = {
    "tools": "tools",
    "json": "JSON",
    "logprobs": "logprobs",
    "images": "images in",
    "reasoning": "reasoning",
}
"""What a card says that a text model can do, and how it is shown."""
_ENDED = f"{REPLICA_REQUESTS}_total"
_WAITING: tuple[tuple[str, dict[str, str]], ...] = (
    ("vllm:num_requests_waiting", {}),
    ("truthgpt_images_jobs", {"state": "queued"}),
    ("truthgpt_batch_requests", {"state": "queued"}),
)
"""Requests that a replica has, and that wait in its engine's own queue."""
_MADE: tuple[tuple[str, dict[str, str], str], ...] = (
    ("vllm:generation_tokens_total", {}, "tokens"),
    ("truthgpt_images_jobs_total", {"outcome": "completed"}, "images"),
    (_ENDED, {}, "requests"),
)
"""What is counted of a model's work, the most telling first."""
_NAMES = frozenset(
    [
        REPLICA_REQUESTS,
        _ENDED,
        REPLICA_MEMORY,
        *(name for name, _ in _WAITING),
        *(name for name, _, _ in _MADE),
    ]
)


@dataclass(frozen=True, slots=True)
class Model:
    """One model of the service; None is what is not known.

    Attributes:
        name: The name that clients send.
        state: Ray Serve's status of its application.
        task: Its task.
        family: Its family.
        adapters: The names of its adapters.
        aliases: Other names of it.
        num_replicas: Replicas that run.
        ongoing: Requests that it works on.
        queued: Requests that wait for it.
        rate: Tokens, images or requests a second.
        rate_unit: Which of them.
        memory_bytes: Resident memory of its processes; not that of GPUs.
        waits_for: What replicas that have no node wait for.
        last_error: Why it does not run as it should.
        capabilities: What it can do, by name; of text models.
    """

    name: str
    state: str | None = None
    task: str | None = None
    family: str | None = None
    adapters: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    num_replicas: int | None = None
    ongoing: int | None = None
    queued: int | None = None
    rate: float | None = None
    rate_unit: str | None = None
    memory_bytes: int | None = None
    waits_for: str | None = None
    last_error: str | None = None
    capabilities: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns it for programs."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Names:
    """Names that lead to a model beside its own."""

    adapters: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)


class ModelReader:
    """Reads the models of a service again and again, and how fast they work between two readings.

    Args:
        client: The service.
        now: The clock.
    """

    def __init__(self, client: ServiceClient, now: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._now = now
        self._made: dict[str, tuple[str, float, float]] = {}

    def read(self) -> list[Model]:
        """Returns the models by name.

        Raises:
            ServiceFault: The service does not answer.
        """
        names = self._names()
        states = self._states()
        with ThreadPoolExecutor(MAX_AT_ONCE) as threads:
            return list(threads.map(lambda name: self._model(name, states, names[name]), names))

    def _names(self) -> dict[str, _Names]:
        """Returns the models by name, each with its other names."""
        names: dict[str, _Names] = {}
        for entry in self._client.entries():
            name, parent, alias_of = entry["id"], entry.get("parent"), entry.get("alias_of")
            if isinstance(alias_of, str):
                names.setdefault(alias_of, _Names()).aliases.append(name)
            elif isinstance(parent, str):
                names.setdefault(parent, _Names()).adapters.append(name)
            else:
                names.setdefault(name, _Names())
        return dict(sorted(names.items()))

    def _states(self) -> dict[str, Any]:
        """Returns what `/ready` says of each model; empty where another server has no such page."""
        try:
            found = self._client.get("/ready", accept=(503,))
        except ServiceFault as fault:
            if fault.status != 404:
                raise
            return {}
        models = found.get("models") if isinstance(found, dict) else None
        return models if isinstance(models, dict) else {}

    def _model(self, name: str, states: dict[str, Any], others: _Names) -> Model:
        known = Model(name, adapters=tuple(others.adapters), aliases=tuple(others.aliases))
        state = states.get(name)
        if not isinstance(state, dict):
            return known
        card = self._try(lambda: self._client.get(model_path(name))) or {}
        own = card.get("card") or {}
        replicas = state.get("num_running_replicas")
        samples = self._samples(name) if replicas else None
        ongoing, queued = load_of(samples)
        rate, unit = self._rate(name, samples)
        memory = samples.total(REPLICA_MEMORY) if samples else None
        return replace(
            known,
            state=text_of(state.get("status")),
            task=text_of(own.get("task")),
            family=text_of(own.get("family")),
            num_replicas=replicas,
            ongoing=ongoing,
            queued=queued,
            rate=rate,
            rate_unit=unit,
            memory_bytes=None if memory is None else int(memory),
            waits_for=text_of(card.get("waits_for") or state.get("message")),
            last_error=text_of(card.get("last_error") or state.get("last_error")),
            capabilities=_capabilities(card.get("capabilities")),
        )

    def _samples(self, name: str) -> Samples | None:
        page = self._try(lambda: self._client.read(f"/models/{name}/metrics"))
        return None if page is None else Samples(page.decode(errors="replace"), _NAMES)

    def _try(self, read: Callable[[], Any]) -> Any:
        """Returns what is read, or None: the rest of the row is worth showing without it."""
        try:
            return read()
        except ServiceFault:
            return None

    def _rate(self, name: str, samples: Samples | None) -> tuple[float | None, str | None]:
        """Returns what a model makes in a second, since the last reading, and what that is."""
        made = first_of(samples)
        before = self._made.pop(name, None)
        if made is None:
            return None, None
        unit, count = made
        self._made[name] = (unit, count, now_s := self._now())
        # A new replica begins at 0.
        if before is None or before[0] != unit or count < before[1] or now_s <= before[2]:
            return None, unit
        return (count - before[1]) / (now_s - before[2]), unit


def _capabilities(found: Any) -> dict[str, Any]:
    """Returns what of a card's `capabilities` is known here, whatever a server says."""
    given = found if isinstance(found, dict) else {}
    known = {name: given[name] for name in CAPABILITIES if isinstance(given.get(name), bool)}
    length = given.get("context_length")
    return {**({"context_length": length} if type(length) is int else {}), **known}


def load_of(samples: Samples | None) -> tuple[int | None, int | None]:
    """Returns how many requests a model works on, and how many wait; None where it is not known."""
    if samples is None:
        return None, None
    ongoing = samples.total(REPLICA_REQUESTS, state="ongoing")
    queued = samples.total(REPLICA_REQUESTS, state="queued")
    if ongoing is None or queued is None:
        return None, None
    found = (samples.total(name, **labels) for name, labels in _WAITING)
    waiting = next((number for number in found if number is not None), 0.0)
    waiting = min(waiting, ongoing)
    return int(ongoing - waiting), int(queued + waiting)


def first_of(samples: Samples | None) -> tuple[str, float] | None:
    """Returns what is counted of a model's work and how much, or None."""
    if samples is None:
        return None
    for name, labels, unit in _MADE:
        count = samples.total(name, **labels)
        if count is not None:
            return unit, count
    return None
