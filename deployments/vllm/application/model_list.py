"""What vLLM says of its models at `GET /v1/models`, without where their files are."""

from __future__ import annotations

from typing import Any


def hide_paths(models: Any) -> None:
    """Has each entry's `root` be its name: vLLM's is a path on this machine.

    Args:
        models: vLLM's `OpenAIServingModels`, which is changed.
    """
    show = models.show_available_models

    async def show_without_paths() -> Any:
        found = await show()
        for card in found.data:
            card.root = card.id
        return found

    models.show_available_models = show_without_paths
