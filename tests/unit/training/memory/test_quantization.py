"""Adapters on quantized weights: what this machine can, trained for real; the rest refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support import training_images as images
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after
from truthgpt_serve.training.images.denoiser import prepare as prepare_images
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.memory.quantization import QUANTIZATION
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.text.prepare import prepare

PRESENT = [n for n, one in QUANTIZATION.items() if importlib.util.find_spec(one.package)]
MISSING = [name for name in QUANTIZATION if name not in PRESENT]
LORA = {"enabled": True, "r": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return write_rows(file, [{"text": text} for text in sentences(16)])


def sections(model: Path, texts: Path, **optim: Any) -> dict[str, Any]:
    training = {"learning_rate": 0.01, "checkpoint_every": 2}
    return sections_of(model, texts, training=training, model_optim=optim)


@pytest.mark.parametrize("name", PRESENT)
def test_an_adapter_learns_on_quantized_weights_and_fits_the_whole_ones(
    name: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    plain = prepare(job_of(tmp_path / "plain", sections(model, texts, lora=LORA)))
    given = sections(model, texts, lora=LORA, quantization=name)
    job = job_of(tmp_path / "run", given)
    facts = prepare(job)
    assert facts.num_trainable == plain.num_trainable
    assert facts.weight_bytes < plain.weight_bytes
    assert any(f"({name})" in note for note in facts.notes)
    whole = run(job)
    assert whole[-1] < whole[0]
    first = checkpoints(job.folder)[0]
    forget_after(job.folder, 2)
    run(job_of(job.folder, given, checkpoint=first))
    assert losses(job.folder) == whole
    base = AutoModelForCausalLM.from_pretrained(model)
    tokens = AutoTokenizer.from_pretrained(model)(sentences(1)[0], return_tensors="pt")
    with torch.no_grad():
        alone = base(**tokens, labels=tokens.input_ids).loss
        adapted = PeftModel.from_pretrained(base, job.folder / "model").eval()
        assert adapted(**tokens, labels=tokens.input_ids).loss < alone - 0.05


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"quantization": "torchao-int8"}, r"not trained themselves \(set .*enabled: true"),
        ({"quantization": "fp8", "lora": LORA}, r"nothing is trained on weights in fp8 \(known: b"),
        ({"quantization": "torchao-int9", "lora": LORA}, "did you mean 'torchao-int8'"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    optim: dict[str, Any], message: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=rf"^model_optim.quantization: .*{message}"):
        prepare(job_of(tmp_path / "run", sections(model, texts, **optim)))


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_named(name: str, model: Path, texts: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path / "run", sections(model, texts, lora=LORA, quantization=name))
    package = QUANTIZATION[name].package
    with pytest.raises(TrainingError, match=rf"{name} needs the package {package}.*pip install"):
        prepare(job)


@pytest.mark.parametrize("name", QUANTIZATION)
def test_of_images_diffusers_needs_a_gpu_for_some(name: str, tmp_path: Path) -> None:
    optim = {"quantization": name, "lora": {"enabled": True}}
    cfg = images.make_cfg(tmp_path, tmp_path, model_optim=optim)
    words = "on a GPU only" if name.startswith("bits") else "no folder of a Diffusers pipeline"
    words = words if name in PRESENT else "which is not installed"
    with pytest.raises(TrainingError, match=words):
        prepare_images(TrainingJob(cfg, tmp_path, None, 1))
