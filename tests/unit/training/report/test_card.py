"""The model card of a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.events import EventWriter
from truthgpt_serve.training.report import write_card
from truthgpt_serve.training.run_folder import write_json

HOSTILE = "a|b`c\n---\n<script>x</script>"


def make_run(folder: Path, name: str = "tales", **sections: Any) -> Path:
    (folder / "model").mkdir(parents=True)
    given = {
        "run_name": name,
        "model": {"name_or_path": "org/base"},
        "data": {"dataset": "org/rows", "eval_dataset": "/nowhere/me/held.jsonl"},
        "training": {"learning_rate": 0.25},
        **sections,
    }
    found = {
        "sources": [f"reads    {HOSTILE}"],
        "units": "tokens",
        "num_examples": 12000,
        "num_eval_examples": 3,
        "num_units": 99,
    }
    config = load_model_config(given, place="test").to_cfg()
    write_json(folder / "run.json", {"config": config, "versions": {"torch": "2.0"}, "data": found})
    writer = EventWriter(folder)
    for step, loss in ((1, 4.0), (2, 2.5)):
        writer.write("step", at=1.0, step=step, loss=loss, learning_rate=0.1, num_units=9)
    writer.write("evaluated", at=2.0, step=2, loss=3.25, perplexity=25.5)
    writer.close()
    return folder


def test_a_card_says_what_a_result_was_made_of(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model_optim={"lora": {"enabled": True, "r": 4}})
    (run / "model" / "adapter_config.json").write_text("{}")
    (run / "model" / "README.md").write_text("that of peft")
    card = ModelCard.load(write_card(run))
    data = card.data.to_dict()
    assert data == {
        "base_model": "org/base",
        "datasets": ["org/rows"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["truthgpt", "lora"],
    }
    for text in (
        "An adapter for `org/base`, made by `truthgpt train` with the method `sft`.",
        "`org/rows`, `held.jsonl`: 12,000 examples, 3 examples to evaluate on, 99 tokens.",
        "| `training.learning_rate` | `0.25` |",
        "| `model_optim.lora.r` | `4` |",
        "| `last loss` | `2.5000` |",
        "| `best perplexity` | `25.5000` |",
        "| `torch` | `2.0` |",
    ):
        assert text in card.text
    assert "/nowhere/me" not in card.content
    assert "training.warmup_ratio" not in card.content
    assert "license" not in card.content


def test_nothing_of_a_run_changes_the_form_of_its_card(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HOSTILE, model={"name_or_path": "/nowhere/me/base"})
    card = ModelCard.load(write_card(run))
    assert card.data.base_model is None
    assert card.data.library_name == "transformers"
    assert "<script>" not in card.text
    assert card.text.count("\n# ") + card.text.startswith("# ") == 1
    assert "A model trained from `base`" in card.text
