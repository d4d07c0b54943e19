"""The YAML file of a new model, with a comment beside what a user may want to change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TASKS = {
    "text-generation": "chat and completions",
    "image-generation": "images",
    "embedding": "embeddings",
    "tensor": "tensors, by the Open Inference Protocol",
    "custom": "/v1/infer, and what the family adds",
}
_HINTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "vllm": (
        "engine",
        "vLLM's own arguments; docs/vllm.md",
        (
            "max_model_len: 8192 # longest prompt and answer; more takes memory",
            "gpu_memory_utilization: 0.9 # share of the GPU for this model",
        ),
    ),
    "hf-diffusers": (
        "engine",
        "docs/images.md",
        ("default_steps: 30 # denoising steps of requests that give none",),
    ),
    "hf-transformers": (
        "engine",
        "docs/transformers.md",
        ("compile_mode: default # with model_optim.compile: true",),
    ),
    "onnxruntime": (
        "batching",
        "docs/tensors.md",
        ("max_batch_size: 32 # requests that are computed together",),
    ),
    "remote": (
        "engine",
        "docs/remote.md",
        (
            "api_key_env: EXAMPLE_API_KEY # the name of a variable, never the key",
            "paths: [/v1/chat/completions] # set it with a key: nothing else is relayed",
        ),
    ),
}
"""By family: a section of `serving`, where it is explained, and what users change first in it."""


@dataclass(frozen=True, slots=True)
class NewModel:
    """What a new model's file says.

    Attributes:
        name: The name that clients send.
        task: Its task.
        family: Its family.
        name_or_path: Its weights.
        gpus: GPUs for each replica, or None for as many as the cluster gives.
        engine: Settings of `serving.engine`.
        adapters: Name and path of each adapter.
        why: What says that it is so.
    """

    name: str
    task: str
    family: str
    name_or_path: str
    gpus: float | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[tuple[str, str], ...] = ()
    why: str = ""


def render(model: NewModel, schema: Path | None) -> str:
    """Returns the text of the file.

    Args:
        model: What it says.
        schema: The schema for editors, from the file's folder; None where there is none.
    """
    lines = [] if schema is None else [f"# yaml-language-server: $schema={schema}"]
    lines += [
        f"# Made by `truthgpt init`{_because(model.why)}.",
        "# Every key, its default and what raising it does: docs/configuration.md.",
        f"run_name: {_scalar(model.name)}",
        f"task: {model.task} # {_TASKS.get(model.task, 'what it does')}",
        "model:",
        f"  family: {_scalar(model.family)}",
        f"  name_or_path: {_scalar(model.name_or_path)}",
    ]
    if model.family != "remote" and not Path(model.name_or_path).is_absolute():
        lines.append("  # revision: main # a commit makes the deployment repeatable")
    lines += _hardware(model)
    lines += _serving(model)
    return "\n".join(lines) + "\n"


def _because(why: str) -> str:
    return f": {' '.join(why.split())}" if why else ""


def _hardware(model: NewModel) -> list[str]:
    if model.family == "remote":
        return ["hardware:", "  cpus: 0.1 # it only relays", "  gpus: 0"]
    gpus = "auto" if model.gpus is None else f"{model.gpus:g}"
    return [
        "hardware:",
        "  cpus: 1 # cores for each replica",
        f"  gpus: {gpus} # GPUs for each replica: auto, a number, or a part such as 0.5",
    ]


def _serving(model: NewModel) -> list[str]:
    lines = [
        "serving:",
        "  num_replicas: 1",
        "  # max_ongoing_requests: 64 # more wait in a queue",
    ]
    if model.adapters:
        lines.append("  adapters:")
        for name, path in model.adapters:
            lines += [f"    - name: {_scalar(name)}", f"      path: {_scalar(path)}"]
    own = [f"    {key}: {_scalar(value)}" for key, value in model.engine.items()]
    section, where, hints = _HINTS.get(model.family, ("engine", "", ()))
    about = f"  {section}:{f' # {where}' if where else ''}"
    if own and section == "engine":
        return [*lines, about, *own, *(f"    # {hint}" for hint in hints)]
    if own:
        lines += ["  engine:", *own]
    # A section with comments alone would be null.
    return [
        *lines,
        *([f"  # {about.strip()}", *(f"  #   {hint}" for hint in hints)] if hints else []),
    ]


def _scalar(value: Any) -> str:
    """Returns a value as YAML; a text that YAML would read as something else gets quotes."""
    import yaml

    if not isinstance(value, str):
        return json.dumps(value)
    text = str(yaml.safe_dump(value, default_style=None, width=10_000, allow_unicode=True))
    return text.removesuffix("\n...\n").strip()
