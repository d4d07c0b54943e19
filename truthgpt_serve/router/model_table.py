"""The models that Serve's controller last told of, by every name that clients may send."""

from __future__ import annotations

import logging

from truthgpt_serve.cluster.haproxy.playground import MOUNT
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.errors import ModelNotFoundError
from truthgpt_serve.router.model_entry import (
    DELETING,
    Clash,
    ModelEntry,
    entries_by_name,
    model_entry,
)

logger = logging.getLogger(__name__)

MODELS_PREFIX = "/models/"


class ModelTable:
    """Models, adapters and aliases.

    Attributes:
        playground: The application of the playground, or None.
        node_hosts: Addresses of the nodes that have a proxy.
    """

    def __init__(self) -> None:
        self.playground: ApplicationState | None = None
        self.node_hosts: frozenset[str] = frozenset()
        self._entries: dict[str, ModelEntry] = {}
        self._only: str | None = None
        self._states: dict[str, ApplicationState] = {}
        self._ran: set[str] = set()
        self._clashes: frozenset[Clash] = frozenset()

    def find(self, name: str) -> ModelEntry | None:
        """Returns the model, adapter or alias of this name, or None."""
        entry = self._entries.get(name)
        return None if entry is None or entry.deleted else entry

    def entries(self) -> list[ModelEntry]:
        """Returns all models, adapters and aliases, by name."""
        entries = (entry for entry in self._entries.values() if not entry.deleted)
        return sorted(entries, key=lambda entry: entry.name)

    def states(self) -> list[ApplicationState]:
        """Returns the model applications as last seen, by name."""
        states = (state for state in self._states.values() if state.status != DELETING)
        return sorted(states, key=lambda state: state.name)

    def only_model(self) -> str | None:
        """Returns the model's name where there is one only, else None."""
        return self._only

    def is_running(self, name: str) -> bool:
        """Whether a replica of this model was running when last asked."""
        entry = self._entries.get(name)
        return entry is not None and entry.running

    def is_draining(self, name: str) -> bool:
        """Whether a replica of this model only finished its requests when last asked."""
        entry = self._entries.get(name)
        return entry is not None and entry.draining

    def get(self, name: str) -> ModelEntry:
        """Returns what `find` does. Raises ModelNotFoundError, which lists the models there are."""
        entry = self.find(name)
        if entry is None:
            known = ", ".join(entry.name for entry in self.entries()) or "none yet"
            raise ModelNotFoundError(
                f"The model {name!r} does not exist. Models that do: {known}", param="model"
            )
        return entry

    def update(self, state: ServeState) -> None:
        """Takes over what the controller said."""
        states = {
            name: application
            for name, application in state.applications.items()
            if (application.route_prefix or "").startswith(MODELS_PREFIX)
        }
        self._ran = {
            name
            for name, app in states.items()
            if app.status != DELETING
            and (name in self._ran or app.num_running_replicas or app.status == "RUNNING")
        }
        models = [model_entry(app, has_run=name in self._ran) for name, app in states.items()]
        entries, clashes = entries_by_name(models)
        self._log_clashes(clashes)
        applications = state.applications.values()
        self.playground = next((one for one in applications if one.route_prefix == MOUNT), None)
        self._log_waiting(states)
        self._entries, self._states = entries, states
        self.node_hosts = state.node_hosts
        names = [entry.name for entry in entries.values() if entry.is_model and not entry.deleted]
        self._only = names[0] if len(names) == 1 else None

    def _log_clashes(self, clashes: frozenset[Clash]) -> None:
        for name, winner, loser in sorted(clashes - self._clashes):
            logger.warning(
                "two applications claim the model name %r: requests go to %r, not to %r; give "
                "`serving.aliases` or `serving.adapters` of one of them another name",
                name,
                winner,
                loser,
            )
        self._clashes = clashes

    def _log_waiting(self, states: dict[str, ApplicationState]) -> None:
        for name, state in states.items():
            before = self._states.get(name)
            if state.waits_for and (before is None or not before.waits_for):
                logger.warning("model %r: %s", name, state.waits_for)
            elif before is not None and before.waits_for and not state.waits_for:
                logger.info("model %r waits no more", name)
