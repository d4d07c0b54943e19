"""The door to everything that imports torch and transformers: one engine for each kind of task."""

from __future__ import annotations

from deployments.hf_transformers.embedding import EmbeddingEngine
from deployments.hf_transformers.generation import TextEngine
from deployments.hf_transformers.pipelines import PipelineEngine
from deployments.hf_transformers.speech import SpeechEngine

__all__ = ["EmbeddingEngine", "PipelineEngine", "SpeechEngine", "TextEngine"]
