"""The door to everything that imports torch and transformers: one engine for each kind of task."""

from __future__ import annotations

from deployments.hf_transformers.embedding import EmbeddingEngine
from deployments.hf_transformers.generation import TextEngine

__all__ = ["EmbeddingEngine", "TextEngine"]
