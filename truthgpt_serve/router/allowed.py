"""The models of a directory that one key may use; the others do not exist for it."""

from __future__ import annotations

from truthgpt_serve.access.gate import hidden_model
from truthgpt_serve.access.identity import Identity
from truthgpt_serve.errors import ModelNotFoundError
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.model_entry import ModelEntry


class AllowedModels:
    """Looks models up for a request.

    Args:
        directory: All models.
        identity: Who asks; None where the service asks for no keys.
    """

    __slots__ = ("_directory", "_identity")

    def __init__(self, directory: ModelDirectory, identity: Identity | None) -> None:
        self._directory = directory
        self._identity = None if identity is None or identity.models is None else identity

    def entries(self) -> list[ModelEntry]:
        """Returns all models, adapters and aliases that it may use, by name."""
        return [entry for entry in self._directory.entries() if self._may_use(entry)]

    def split(self, path: str) -> tuple[str, str]:
        """Splits a path below `/models/` behind the longest name in front, or its first segment."""
        names = (entry.name for entry in self.entries())
        found = [name for name in names if f"{path}/".startswith(f"{name}/")]
        name = max(found, key=len, default=path.partition("/")[0])
        return name, path[len(name) :]

    async def look_up(self, name: str) -> ModelEntry | None:
        """Returns what `ModelDirectory.look_up` does, or None where it may not use the model."""
        entry = self._directory.find(name)
        if entry is not None and not self._may_use(entry):
            return None
        entry = await self._directory.look_up(name)
        return entry if entry is not None and self._may_use(entry) else None

    async def resolve(self, name: str) -> ModelEntry:
        """Returns what `ModelDirectory.resolve` does.

        Raises:
            ModelNotFoundError: There is no such model, or it may not use it.
            UnavailableError: The model has never run, or failed.
        """
        if self._identity is None:
            return await self._directory.resolve(name)
        entry = self._directory.find(name)
        if entry is not None and not self._may_use(entry):
            raise hidden_model(name)
        try:
            entry = await self._directory.resolve(name)
        except ModelNotFoundError as error:
            raise self.worded(error, name) from None
        if not self._may_use(entry):
            raise hidden_model(name)
        return entry

    def worded(self, error: ModelNotFoundError, name: str) -> ModelNotFoundError:
        """Returns an error about a name without the models that it lists, where not all exist."""
        return error if self._identity is None else hidden_model(name)

    def _may_use(self, entry: ModelEntry) -> bool:
        return self._identity is None or self._identity.may_use(entry.name, entry.application)
