"""What to do with a result, as the end of a run says it."""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.serving import serving_lines


def test_the_lines_to_serve_are_right(tmp_path: Path) -> None:
    given = {"run_name": "tales", "model": {"name_or_path": "org/model"}}
    config = load_model_config(given, place="test")
    assert serving_lines(config, tmp_path) == ["model:", f"  name_or_path: {tmp_path}"]
    (tmp_path / "adapter_config.json").write_text("{}")
    lines = serving_lines(config, tmp_path)
    assert lines[-1] == f"    - {{name: tales, path: {tmp_path}}}"
