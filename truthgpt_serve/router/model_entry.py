"""A name that clients may send as `model`, by the state of Ray Serve and the card of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import quote

from truthgpt_serve.cluster.state import ApplicationState

DELETING = "DELETING"
"""Serve's status of an application that goes away once its requests are finished."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One name that clients may send as `model`.

    Attributes:
        name: The model name, an adapter's or an alias.
        application: The application that serves it.
        prefix: Where that application is mounted, percent-encoded, such as `b"/models/echo"`.
        running: Whether a replica was running when last asked.
        draining: Whether one only finished its requests when last asked.
        error: What a request gets instead of being relayed, or None.
        created: When it was deployed, seconds since the epoch.
        card: What the application says of itself.
        parent: The model whose adapter this is, or None.
        alias_of: The model of which this is another name, or None.
        deleted: Whether it is being removed: it finishes its requests, and takes no more.
        settled: Whether all its replicas are of its last deployment.
        num_replicas: Replicas that ran when last asked.
        waits_for: What replicas without a node wait for, in words, or None.
        replicas: Their ids.
    """

    name: str
    application: str
    prefix: bytes
    running: bool
    error: str | None
    created: int
    card: dict[str, Any]
    parent: str | None = None
    alias_of: str | None = None
    draining: bool = False
    deleted: bool = False
    settled: bool = False
    num_replicas: int = 0
    waits_for: str | None = None
    replicas: frozenset[str] = frozenset()

    @property
    def is_model(self) -> bool:
        """Whether this is a model's own name."""
        return self.parent is None and self.alias_of is None


class Clash(NamedTuple):
    """A model name that two applications claim.

    Attributes:
        name: The name.
        winner: The application that gets its requests.
        loser: The other one.
    """

    name: str
    winner: str
    loser: str


def model_entry(application: ApplicationState, *, has_run: bool) -> ModelEntry:
    """Returns the entry of an application.

    Args:
        application: The application.
        has_run: Whether it ever ran, as far as this router has seen.
    """
    return ModelEntry(
        name=application.name,
        application=application.name,
        prefix=quote(application.route_prefix or "").encode(),
        running=application.num_running_replicas > 0,
        error=_why_unavailable(application, has_run=has_run),
        created=int(application.deployed_at_s),
        card=application.card or {},
        draining=application.num_draining_replicas > 0,
        deleted=application.status == DELETING,
        settled=application.status == "RUNNING",
        num_replicas=application.num_running_replicas,
        waits_for=application.waits_for,
        replicas=application.replicas,
    )


def adapter_entries(model: ModelEntry) -> list[ModelEntry]:
    """Returns the entries of a model's adapters."""
    names = model.card.get("adapters") or []
    return [replace(model, name=name, parent=model.name) for name in names]


def alias_entries(model: ModelEntry) -> list[ModelEntry]:
    """Returns the entries of a model's other names."""
    names = model.card.get("aliases") or []
    return [replace(model, name=name, alias_of=model.name) for name in names]


def entries_by_name(models: list[ModelEntry]) -> tuple[dict[str, ModelEntry], frozenset[Clash]]:
    """Returns what each name stands for, and which names two applications claim.

    `validate` refuses a name that is given twice. Should it be deployed, models come before
    adapters, these before aliases, and applications in the order of their names; what is being
    removed gives way to its successor.
    """
    models = sorted(models, key=lambda model: (model.deleted, model.name))
    adapters = chain.from_iterable(map(adapter_entries, models))
    aliases = chain.from_iterable(map(alias_entries, models))
    entries: dict[str, ModelEntry] = {}
    clashes = set()
    for entry in (*models, *adapters, *aliases):
        other = entries.setdefault(entry.name, entry)
        if other.deleted and not entry.deleted:
            entries[entry.name] = entry
        elif not entry.deleted and other.application != entry.application:
            clashes.add(Clash(entry.name, other.application, entry.application))
    return entries, frozenset(clashes)


def _why_unavailable(application: ApplicationState, *, has_run: bool) -> str | None:
    if application.num_running_replicas:
        return None
    if application.status == "DEPLOY_FAILED":
        name = application.name
        return f"The model {name!r} failed to start: `truthgpt why {name}` says why"
    if application.waits_for:
        return f"The model {application.name!r} is not placed: {application.waits_for}"
    if not has_run:
        return f"The model {application.name!r} is starting; try again in a few seconds"
    return None
