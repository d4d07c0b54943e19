"""The door to everything that imports torch and transformers: one engine for each kind of task."""

from __future__ import annotations

from deployments.hf_transformers.embedding.model import EmbeddingEngine
from deployments.hf_transformers.generation.model import TextEngine
from deployments.hf_transformers.pipelines.model import PipelineEngine
from deployments.hf_transformers.pipelines.speech import SpeechEngine

__all__ = ["EmbeddingEngine", "PipelineEngine", "SpeechEngine", "TextEngine"]
