"""A merged folder computes what base and adapter do, for each kind of adapter that peft makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.merge import merge
from truthgpt_serve.training.run_record import create_record, write_record

TEXT = sentences(1)[0]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
    "rslora": {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    "new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "llama")


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Writes an adapter whose weights all differ from what peft begins with."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings),
    )
    draw = torch.Generator().manual_seed(3)
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn(weight.shape, generator=draw)
    model.save_pretrained(str(folder))
    return folder


def logits(model: Any, base: Path) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(base)(TEXT, return_tensors="pt")
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**tokens).logits
    return found


# peft says that it saves the embeddings too, which is a case of its own for merging.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_base_and_adapter(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **KINDS[kind])
    folder, _ = merge(adapter)
    assert folder == tmp_path / "adapter-merged"
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain, base)
    adapted = logits(PeftModel.from_pretrained(plain, adapter), base)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder), base)
    assert (adapted - before).abs().max() > 0.05
    assert (merged - adapted).abs().max() <= 1e-4


# What peft warns of is what the test is about.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer")
def test_shared_embeddings_stay_right_when_an_adapter_parts_them(
    base: Path, tmp_path: Path
) -> None:
    tied = AutoModelForCausalLM.from_pretrained(base)
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "tied")
    adapter = make_adapter(
        tmp_path / "tied",
        tmp_path / "adapter",
        target_modules=["q_proj"],
        modules_to_save=["lm_head"],
    )
    folder, _ = merge(adapter, out=tmp_path / "whole")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    adapted = logits(PeftModel.from_pretrained(plain, adapter), base)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder), base)
    assert (merged - adapted).abs().max() <= 1e-4


def test_a_run_becomes_an_ordinary_folder(base: Path, tmp_path: Path) -> None:
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(8)])
    sections = sections_of(
        base,
        texts,
        training={"learning_rate": 0.02},
        model_optim={"lora": {"enabled": True, "r": 4}},
    )
    job = job_of(tmp_path / "run", sections)
    run(job)
    write_record(job.folder, create_record(job))
    folder, lines = merge(tmp_path / "run")
    assert folder == tmp_path / "run" / "merged"
    assert "largest difference" in lines[0]
    merged = AutoModelForCausalLM.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "run" / "model")
    assert (logits(merged, folder) - logits(adapted, base)).abs().max() <= 1e-4
    assert merged.generation_config.eos_token_id == plain.generation_config.eos_token_id
    chat = [{"role": "user", "content": "hi"}]
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, tokenize=False
    ) == AutoTokenizer.from_pretrained(base).apply_chat_template(chat, tokenize=False)
    with pytest.raises(TakeawayError, match=r"exists already .*--force"):
        merge(tmp_path / "run" / "model")
    merge(tmp_path / "run" / "model", force=True, dtype="bfloat16", max_shard="200KB")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert sorted(path.name for path in (tmp_path / "run").glob(".*.tmp")) == []


def test_a_classifier_keeps_its_head(base: Path, tmp_path: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
    settings = LoraConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS")
    model = get_peft_model(plain, settings)
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_B" in name:
            weight.data += 0.1
    model.save_pretrained(str(tmp_path / "adapter"))
    folder, _ = merge(tmp_path / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(folder)
    assert merged.config.num_labels == 5
    assert (logits(merged, base) - logits(model, base)).abs().max() <= 1e-4


def test_what_cannot_be_merged_says_why_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    adapter = make_tiny_adapter(tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())

    def renamed(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        return folder

    quantized = tmp_path / "quantized"
    quantized.mkdir()
    for file in base.iterdir():
        (quantized / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True).to_dict()
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(TakeawayError, match=r"quantized \(bitsandbytes\).*--base"):
        merge(adapter, base=str(quantized))
    with pytest.raises(TakeawayError, match=r"is not there .*--base"):
        merge(renamed("moved", base_model_name_or_path="/nowhere/llama"))
    with pytest.raises(TakeawayError, match=r"names no model .*--base"):
        merge(renamed("alone", base_model_name_or_path=None))
    with pytest.raises(TakeawayError, match="QUESTION_ANS"):
        merge(renamed("question", task_type="QUESTION_ANS"), base=str(base))
    with pytest.raises(TakeawayError, match="is a whole model"):
        merge(base)
    with pytest.raises(TakeawayError, match="is no folder"):
        merge(tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == []
