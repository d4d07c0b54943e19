"""The lines of YAML that serve what a run has made."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.config.training import METHODS
from truthgpt_serve.training.memory.lora import adapters_below

ADAPTER_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
"""What marks a folder as an adapter: of peft, and of a Diffusers pipeline."""


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter rather than a model."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def serving_lines(config: ModelConfig, folder: Path) -> list[str]:
    """Returns the lines for the model's YAML: the model itself, or what it is served with."""
    if config.task == "image-generation":
        component = config.training.component
        if component == "controlnet":
            return ["serving:", "  engine:", f"    controlnet: {folder}"]
        if component == "textual_inversion":
            return ["serving:", "  engine:", f"    textual_inversion: [{folder}]"]
    below = adapters_below(config.to_cfg())
    if is_adapter(folder) and below:
        return ["model:", f"  adapter: [{', '.join((*below, str(folder)))}]"]
    if is_adapter(folder) and config.family == "hf-transformers":
        return ["model:", f"  adapter: {folder}"]
    if is_adapter(folder):
        return [
            "serving:",
            "  adapters:",
            f"    - {{name: {config.run_name}, path: {folder}}}",
        ]
    lines = ["model:", f"  name_or_path: {folder}"]
    if METHODS[config.training.method].head in ("score", "classes"):
        lines = ["task: custom", "model:", "  family: hf-transformers", *lines[1:]]
        lines += ["serving:", "  engine: {pipeline_task: text-classification}"]
    return lines
