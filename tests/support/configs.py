"""A small service's folder, and files of models, for the tests of configurations.

Knows no test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from truthgpt_serve.config import ModelConfig, load_model_config
from truthgpt_serve.errors import ConfigError

SECRET = "sk-4711-do-not-show"
"""What a variable of the environment holds, and no message may say."""

_REGISTER = """
from truthgpt_serve import register_model


@register_model({name!r})
class {cls}:
    def load(self, cfg):
        self.cfg = cfg

    def infer(self, inputs):
        return inputs
"""

_FILES = {
    "configs/models/echo.yaml": "model: {family: echo}\n",
    "configs/models/bad.yaml": "model: {family: echo}\nhardware:\n  gpus: 1.5\n",
    "configs/models/busy.yaml": (
        "model: {family: echo}\nhardware: {cpus: 1}\nserving:\n"
        "  max_ongoing_requests: 8\n  autoscaling: {max_replicas: 2}\n"
    ),
    "configs/models/adapters.yaml": (
        "model: {family: vllm, name_or_path: org/model}\nserving:\n"
        "  adapters:\n    - {name: style, path: org/style}\n"
    ),
    "registers_one.py": _REGISTER.format(name="config-test-one", cls="One"),
    "registers_two.py": _REGISTER.format(name="config-test-a", cls="A")
    + _REGISTER.format(name="config-test-b", cls="B"),
    "registers_nothing.py": "",
}


def make_service(folder: Path) -> None:
    """Writes models' files and a user's modules into `folder`."""
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write(folder: Path, text: str) -> Path:
    """Writes the file of a model."""
    path = folder / "m.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str) -> ModelConfig:
    """Reads a model from the text of its file."""
    return load_model_config(write(folder, text))


def faults(folder: Path, text: str) -> list[str]:
    """Returns what is wrong with the text of a model's file."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    assert SECRET not in str(caught.value)
    return [str(fault).removeprefix(f"{folder}/") for fault in caught.value.faults]
