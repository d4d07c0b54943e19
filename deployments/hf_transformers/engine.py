"""Creates the engine of a task; all that imports torch and transformers is behind this module."""

from __future__ import annotations

from deployments.hf_transformers.embedding.model import EmbeddingEngine
from deployments.hf_transformers.generation.model import TextEngine
from deployments.hf_transformers.pipelines.model import PipelineEngine
from deployments.hf_transformers.pipelines.speech import SpeechEngine

__all__ = ["EmbeddingEngine", "PipelineEngine", "SpeechEngine", "TextEngine"]
