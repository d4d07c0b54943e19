from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.shipped import publish


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "model" / "unet").mkdir(parents=True)
    (run / "model" / "weights.safetensors").write_bytes(b"new")
    (run / "model" / "README.md").write_text("of a library")
    settings = {"_name_or_path": str(tmp_path), "width": 8}
    (run / "model" / "unet" / "config.json").write_text(json.dumps(settings))
    adapter = {"r": 4, "base_model_name_or_path": str(tmp_path / "story")}
    (run / "model" / "adapter_config.json").write_text(json.dumps(adapter))
    return run


def test_the_result_replaces_all_but_the_card(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "models" / "mine"
    (to / "vae").mkdir(parents=True)
    (to / "vae" / "old.json").write_text("{}")
    (to / "old.safetensors").write_bytes(b"old")
    (to / "README.md").write_text("the card")
    for _ in range(2):
        publish.main(["--run", str(run), "--to", str(to)])
        files = {str(path.relative_to(to)) for path in to.rglob("*") if path.is_file()}
        assert files == {
            "README.md", "adapter_config.json", "unet/config.json", "weights.safetensors",
        }  # fmt: skip
        assert (to / "README.md").read_text() == "the card"
        assert (to / "weights.safetensors").read_bytes() == b"new"
        assert json.loads((to / "unet" / "config.json").read_text()) == {"width": 8}
        adapter = json.loads((to / "adapter_config.json").read_text())
        assert adapter == {"r": 4, "base_model_name_or_path": "models/story"}


def test_an_unfinished_run_changes_nothing(tmp_path: Path) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "weights.safetensors").write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="not finished"):
        publish.publish(tmp_path / "run", to)
    assert (to / "weights.safetensors").read_bytes() == b"old"
