"""A name that clients may send as `model`, by the state of Ray Serve and the card of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from truthgpt_serve.serve_state import ApplicationState

DELETING = "DELETING"
"""Serve's status of an application that goes away once its requests are finished."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One name that clients may send as `model`.

    Attributes:
        name: The model name or adapter name.
        application: The application that serves it.
        prefix: Where that application is mounted, percent-encoded, such as `b"/models/echo"`.
        running: Whether a replica was running when last asked.
        draining: Whether one only finished its requests when last asked.
        error: What a request gets instead of being relayed, or None.
        created: When it was deployed, seconds since the epoch.
        card: What the application says of itself.
        parent: The model whose adapter this is, or None.
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
    draining: bool = False
    deleted: bool = False
    settled: bool = False
    num_replicas: int = 0
    waits_for: str | None = None
    replicas: frozenset[str] = frozenset()


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


def _why_unavailable(application: ApplicationState, *, has_run: bool) -> str | None:
    if application.num_running_replicas:
        return None
    if application.status == "DEPLOY_FAILED":
        return f"The model {application.name!r} failed to start; its reason is in `serve status`"
    if application.waits_for:
        return f"The model {application.name!r} is not placed: {application.waits_for}"
    if not has_run:
        return f"The model {application.name!r} is starting; try again in a few seconds"
    return None
