"""Loads LoRA adapters into a started engine; one that cannot be loaded leaves the others alone.

vLLM itself loads them before it serves, and does not start when one fails.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.exceptions import GracefulHTTPError

from deployments.vllm.adapters.files import find_problems
from truthgpt_serve.config.paths import expand
from truthgpt_serve.errors import failed_adapter

logger = logging.getLogger(__name__)


class Adapters:
    """The adapters of one model.

    Args:
        cfg: The whole configuration.

    Attributes:
        usable: Those whose files can be loaded, each with its local `path`.
        failed: Why each of the others cannot be served, by name.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.usable: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}
        weights = cfg["model"]["name_or_path"]
        base = expand(weights) if weights else None
        max_rank = cfg["serving"]["engine"].get("max_lora_rank")
        for adapter in cfg["serving"]["adapters"]:
            try:
                folder = _fetch(adapter["path"])
            except Exception as error:  # the hub's library has an error for each way to fail
                reason = f"{adapter['path']!r} cannot be fetched: {type(error).__name__}: {error}"
                self._fail(adapter["name"], reason)
                continue
            problems = [message for message, _ in find_problems(folder, base, max_rank)]
            if problems:
                self._fail(adapter["name"], "; ".join(problems))
            else:
                self.usable.append({**adapter, "path": str(folder)})

    def _fail(self, name: str, reason: str) -> None:
        logger.error("the adapter %r is not served: %s", name, reason)
        self.failed[name] = reason

    async def load(self, models: Any) -> None:
        """Loads the usable ones, and has requests for the failed ones answered with the reason.

        Args:
            models: vLLM's `OpenAIServingModels`.
        """
        for adapter in self.usable:
            request = LoadLoRAAdapterRequest(lora_name=adapter["name"], lora_path=adapter["path"])
            result = await models.load_lora_adapter(request)
            if isinstance(result, ErrorResponse):
                self._fail(adapter["name"], result.error.message)
        self.usable = [one for one in self.usable if one["name"] not in self.failed]
        if self.failed:
            models.is_base_model = _Refusing(models.is_base_model, self.failed)


class _Refusing:
    """vLLM's question whether a name is the base model's, asked first for each request."""

    def __init__(self, original: Any, failed: Mapping[str, str]) -> None:
        self._original = original
        self._failed = failed

    def __call__(self, name: str) -> bool:
        if name in self._failed:
            error = failed_adapter(name, self._failed[name])
            raise GracefulHTTPError(error.message, HTTPStatus(error.status))
        return bool(self._original(name))


def _fetch(path: str) -> Path:
    """Returns an adapter's local folder, after downloading one of the hub."""
    folder = expand(path)
    if folder.exists():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path))
