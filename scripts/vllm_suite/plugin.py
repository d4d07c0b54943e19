"""A pytest plugin for vLLM's tests: the hub's downloads lead to the folder's small models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import vllm.transformers_utils.repo_utils as repo_utils


class _Hub:
    def snapshot_download(self, repo_id: str, **_: Any) -> str:
        """Returns the small adapter for an adapter's name, else the small model."""
        return str(Path("small-lora" if "lora" in repo_id.lower() else "small").resolve())


repo_utils.hf_api = _Hub
