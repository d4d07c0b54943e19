from __future__ import annotations

from deployments.onnx.config import OnnxSettings
from deployments.onnx.engine import probe_provider


def test_the_probe_runs_a_graph() -> None:
    assert probe_provider("cpu", OnnxSettings()) is None
