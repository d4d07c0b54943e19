"""What to do with a result, as the end of a run says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.serving import serving_lines


def test_the_lines_to_serve_are_right(tmp_path: Path) -> None:
    given = {"run_name": "tales", "model": {"name_or_path": "org/model"}}
    config = load_model_config(given, place="test")
    assert serving_lines(config, tmp_path) == ["model:", f"  name_or_path: {tmp_path}"]
    (tmp_path / "adapter_config.json").write_text("{}")
    lines = serving_lines(config, tmp_path)
    assert lines[-1] == f"    - {{name: tales, path: {tmp_path}}}"


def test_what_is_learned_beside_an_image_model_goes_to_its_engine(tmp_path: Path) -> None:
    given = {"task": "image-generation", "model": {"name_or_path": "org/model"}}
    trained: dict[str, Any] = {"training": {"component": "controlnet"}}
    lines = serving_lines(load_model_config({**given, **trained}, place="test"), tmp_path)
    assert lines == ["serving:", "  engine:", f"    controlnet: {tmp_path}"]
    word = {"placeholder": "<toy>", "initializer": "toy"}
    trained = {"training": {"component": "textual_inversion", "textual_inversion": word}}
    lines = serving_lines(load_model_config({**given, **trained}, place="test"), tmp_path)
    assert lines[-1] == f"    textual_inversion: [{tmp_path}]"
