"""Adapters that are trained further, or below another, and served as `model.adapter`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from deployments.hf_transformers.loading import load_config, load_model, read_source
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.result import find_result
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.run_record import create_record, write_record
from truthgpt_serve.training.serving import serving_of

LORA = {"enabled": True, "r": 8, "dropout": 0.0}
IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return write_rows(file, [{"text": text} for text in sentences(16)])


def sections(model: Path, texts: Path, /, **given: Any) -> dict[str, Any]:
    training = {"learning_rate": 0.01}
    optim = {"lora": given.pop("lora", LORA)}
    found = sections_of(model, texts, training=training, model_optim=optim, **given)
    found["model"]["family"] = "hf-transformers"
    return found


@pytest.fixture(scope="module")
def first(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter, trained with the family `hf-transformers`."""
    job = job_of(tmp_path_factory.mktemp("first") / "run", sections(model, texts))
    found = run(job)
    assert found[-1] < found[0]
    return job.folder / "model"


def served(model: Path, adapters: list[Path], **more: Any) -> torch.Tensor:
    given = {"name_or_path": str(model), "adapter": list(map(str, adapters))}
    given["family"] = "hf-transformers"
    cfg = load_model_config({"model": given, "hardware": {"gpus": 0}, **more}).to_cfg()
    source = read_source(cfg)
    loaded = load_model(transformers.AutoModelForCausalLM, source, load_config(source))
    assert type(loaded).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        logits: torch.Tensor = loaded(IDS).logits.float()
    return logits


def reference(model: Path, adapters: list[Path]) -> torch.Tensor:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for adapter in adapters:
        loaded = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    with torch.no_grad():
        logits: torch.Tensor = loaded.eval()(IDS).logits
    return logits


def test_it_goes_on_or_another_is_trained_on_top_and_the_same_yaml_serves(
    model: Path, texts: Path, first: Path, tmp_path: Path
) -> None:
    adapter = {"adapter": str(first)}
    further = job_of(tmp_path / "further", sections(model, texts, model=adapter))
    stacked = sections(model, texts, model=adapter, lora={**LORA, "stack": True})
    above = job_of(tmp_path / "above", stacked)
    found = [run(further), run(above)]
    # Both begin from what the first adapter has learned.
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][0] < 7.0
    results = [job.folder / "model" for job in (further, above)]
    both = [[results[0]], [first, results[1]]]
    for adapters in both:
        logits = reference(model, adapters)
        torch.testing.assert_close(served(model, adapters), logits, rtol=0, atol=2e-3)
        assert float((logits - reference(model, [first])).abs().max()) > 0.05
    config = load_model_config(stacked)
    args = serving_of({"config": config.to_cfg()}, results[1]).args
    assert args["model"]["adapter"] == [str(first), str(results[1])]
    assert args["model"]["family"] == "hf-transformers"  # vLLM adds none to the weights
    write_record(above.folder, create_record(above))
    with pytest.raises(TakeawayError, match=r"stands on others.*merge those first"):
        find_result(above.folder)


def test_with_quantized_weights_it_stays_beside_them(model: Path, first: Path) -> None:
    pytest.importorskip("torchao")
    optim = {"model_optim": {"quantization": "torchao-int8"}}
    alone, adapted = served(model, [], **optim), served(model, [first], **optim)
    difference = reference(model, [first]) - reference(model, [])
    # Rounded to 8 bits alike, the two differ by about what the adapter changes.
    likeness = torch.cosine_similarity((adapted - alone).flatten(), difference.flatten(), 0)
    assert float(likeness) > 0.98
    with pytest.raises(ConfigError, match=r"2 adapters are not added to quantized weights"):
        served(model, [first, first], **optim)


def test_a_preference_goes_on_from_it_and_leaves_one_adapter(
    model: Path, first: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "Ada", "chosen": f" {t}", "rejected": " no"} for t in sentences(8)]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    given = sections(model, file, model={"adapter": str(first)})
    given["training"]["method"] = "dpo"
    job = job_of(tmp_path / "run", given)
    found = run(job)
    # It is compared with the adapter that it began with: at first the two are equal.
    assert found[0] == pytest.approx(0.693, abs=0.01)
    assert not [one for one in (job.folder / "model").iterdir() if one.is_dir()]


def test_an_adapter_of_another_base_is_refused_with_both_names(
    first: Path, texts: Path, model: Path, tmp_path: Path
) -> None:
    settings = transformers.AutoConfig.from_pretrained(model)
    settings.hidden_size, settings.head_dim = 64, 16
    other = tmp_path / "other"
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(other)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(other)
    given = sections(other, texts, model={"adapter": str(first)})
    with pytest.raises(TrainingError, match=rf"{first}, trained for {model},.* to {other}: "):
        run(job_of(tmp_path / "run", given))
    with pytest.raises(ConfigError, match=rf"{first}, trained for {model},.* to {other}: "):
        served(other, [first])
