"""The `training` section: how `truthgpt train` fits a model."""

from __future__ import annotations

from truthgpt_serve.config.training.images import ImageTraining
from truthgpt_serve.config.training.text import TextTraining


class TrainingSection(ImageTraining, TextTraining):
    """Hyperparameters of `truthgpt train`; serving ignores them."""
