"""TruthGPT Serve: many model families behind one OpenAI-compatible address, on Ray Serve."""

from truthgpt_serve.registry import MODEL_REGISTRY, register_model
from truthgpt_serve.runner import build_model, run_infer

__all__ = ["MODEL_REGISTRY", "build_model", "register_model", "run_infer"]
