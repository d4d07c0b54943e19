"""How tiny models are written: into a folder, with weights whose outputs differ by enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save(folder: Path, model: Any) -> Path:
    """Writes a model into a folder, which is made; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    return folder


def spread(model: Any, scale: float = 4.0) -> Any:
    """Makes the weights larger, so that outputs differ by far more than rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "norm" not in name.lower():
                parameter.mul_(scale)
    return model
