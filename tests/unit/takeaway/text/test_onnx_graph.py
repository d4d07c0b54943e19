"""Trained, merged, exported: the graph says greedily what the model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.onnx.text.deployment import OnnxTextModel
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.export import export
from truthgpt_serve.takeaway.merge import merge
from truthgpt_serve.training.run_record import create_record, write_record

NUM_TOKENS = 24
PROMPTS = ("Ada finds", "Ben finds the river. Cleo", "The lantern of Dan")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has trained an adapter."""
    folder = tmp_path_factory.mktemp("runs")
    base = make_tiny_llama(folder / "llama")
    texts = write_rows(folder / "texts.jsonl", [{"text": text} for text in sentences(16)])
    lora = {"enabled": True, "r": 8}
    training = {"learning_rate": 0.02, "epochs": 3}
    sections = sections_of(base, texts, training=training, model_optim={"lora": lora})
    job = job_of(folder / "run", sections)
    run(job)
    write_record(job.folder, create_record(job))
    return job.folder


@pytest.fixture(scope="module")
def graph(finished: Path) -> Path:
    folder, lines = export(finished, "onnx")
    assert folder == finished / "onnx"
    assert "largest difference" in lines[0]
    return folder


def configure(folder: Path) -> dict[str, Any]:
    config = load_model_config(
        {
            "task": "text-generation",
            "model": {"family": "onnxruntime", "name_or_path": str(folder)},
            "hardware": {"gpus": 0},
        }
    )
    assert check_model(config) == []
    return config.to_cfg()


@pytest.mark.long("exports and checks a graph")
def test_the_graph_says_what_the_merged_model_says(finished: Path, graph: Path) -> None:
    merged, _ = merge(finished)
    model = AutoModelForCausalLM.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    served = OnnxTextModel()
    served.load(configure(graph))
    assert served.acceleration["kv_cache"] is True
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            made = model.generate(**tokens, max_new_tokens=NUM_TOKENS, do_sample=False)
        wanted = tokenizer.decode(made[0, tokens.input_ids.shape[1] :], skip_special_tokens=True)
        found = served.infer({"text": prompt, "max_new_tokens": NUM_TOKENS, "temperature": 0})
        assert found["text"] == wanted
        assert len(wanted) > 10
    served.close()


def test_what_cannot_be_exported_says_why(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(TakeawayError, match=r"--dtype bfloat16: .*float16"):
        export(finished, "onnx", out=tmp_path / "out", dtype="bfloat16")
    assert not (tmp_path / "out").exists()
