"""The tiny model of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama


def test_tiny_model_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        folder = make_tiny_llama(tmp_path / name)
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]
    config = json.loads(contents[0]["config.json"])
    assert config["max_position_embeddings"] >= 2048
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    make_tiny_llama(tmp_path / "b")
    assert times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_tiny_adapters_differ_by_seed(tmp_path: Path) -> None:
    weights = [
        (make_tiny_adapter(tmp_path / str(seed), seed=seed) / "adapter_model.safetensors")
        for seed in (1, 2)
    ]
    assert weights[0].read_bytes() != weights[1].read_bytes()


def test_tiny_model_does_not_overwrite_a_strangers_folder(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(FileExistsError, match="name another folder"):
        make_tiny_llama(tmp_path)
    assert (tmp_path / "note").read_text() == "mine"
