"""A small service's folder for the tests of configurations.

Knows no test.
"""

from __future__ import annotations

from pathlib import Path

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
