"""The `training` section, and the table of methods by which a model learns."""

from __future__ import annotations

from truthgpt_serve.config.training.methods import METHODS, Method, method_of
from truthgpt_serve.config.training.section import TrainingSection

__all__ = ["METHODS", "Method", "TrainingSection", "method_of"]
