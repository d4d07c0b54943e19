"""Each optimizer that this machine can run trains a model; the others are refused in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support import training_images as images
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.config.training.schedule import OptimizerName
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after
from truthgpt_serve.training.memory.optimizers import (
    OPTIMIZERS,
    check_optimizer,
    create_optimizer,
    state_bytes,
)
from truthgpt_serve.training.run_folder import checkpoints

PAGED = [name for name in OPTIMIZERS if name.startswith("paged_")]
PRESENT = [
    name
    for name, one in OPTIMIZERS.items()
    if importlib.util.find_spec(one.package) and not one.needs_gpu
]
MISSING = [name for name in OPTIMIZERS if name not in (*PRESENT, *PAGED)]
COMPILED = ("adamw_torch_8bit", "adamw_torch_4bit")
"""Made of code that torch compiles, for each shape anew: seconds on a slow core."""
RUNNABLE = [
    pytest.param(name, marks=pytest.mark.long("compiles")) if name in COMPILED else name
    for name in PRESENT
]
NUM_ROWS = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return write_rows(file, [{"text": text} for text in sentences(NUM_ROWS)])


def settings(name: str, **given: Any) -> dict[str, Any]:
    return {"optimizer": name, "learning_rate": 1e-2, **given}


def test_the_schema_has_each_of_them() -> None:
    assert set(get_args(OptimizerName)) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", PRESENT)
def test_it_is_what_transformers_makes_of_the_same_name(name: str, tmp_path: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), optim=OPTIMIZERS[name].trainer_name, use_cpu=True
    )
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    ours = create_optimizer(settings(name), [{"params": [weight]}], on_cpu=True)
    expected_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert type(ours) is expected_class
    theirs = expected_class([weight], **{**options, "lr": 1e-2})
    assert ours.defaults == theirs.defaults


@pytest.mark.parametrize("name", RUNNABLE)
def test_it_makes_a_loss_smaller(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(64, 64))
    group = {"params": [weight], "weight_decay": 0.0}
    optimizer = create_optimizer(settings(name), [group], on_cpu=True)
    before = float((weight.detach() ** 2).sum())
    for _ in range(3):
        (weight**2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float((weight.detach() ** 2).sum()) < before


@pytest.mark.long("trains with each optimizer")
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_text_model_learns_with_it_and_goes_on(
    name: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    sections = sections_of(
        model,
        texts,
        training={"optimizer": name, "checkpoint_every": 2, "learning_rate": 1e-3},
        model_optim={"lora": {"enabled": True, "r": 2, "dropout": 0.1}},
    )
    job = job_of(tmp_path / "run", sections)
    whole = run(job)
    assert len(whole) == NUM_ROWS // 4
    first = checkpoints(job.folder)[0]
    forget_after(job.folder, int(first.name.removeprefix("step-")))
    run(job_of(job.folder, sections, checkpoint=first))
    assert losses(job.folder) == whole


def test_an_image_model_learns_with_another(tmp_path: Path) -> None:
    data = images.save_images(tmp_path / "images")
    folder = images.save_pipeline("sd", tmp_path / "sd")
    found = {}
    for name in ("adamw", "adafactor"):
        cfg = images.make_cfg(folder, data, training={"optimizer": name, "max_steps": 3})
        found[name] = images.run(cfg, tmp_path / name).losses
    assert found["adamw"][0] == found["adafactor"][0]
    assert found["adamw"][1:] != found["adafactor"][1:]


@pytest.mark.parametrize("name", PAGED)
def test_what_moves_memory_off_a_gpu_is_refused_without_one(name: str) -> None:
    with pytest.raises(
        TrainingError, match=r"f.yaml: paged_.*there is no GPU \(write (adamw|lion)"
    ):
        check_optimizer(settings(name), on_cpu=True, place="f.yaml")
    other = name.removeprefix("paged_").removesuffix("_32bit")
    assert other in OPTIMIZERS


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_package_is_named(name: str) -> None:
    package = OPTIMIZERS[name].package
    with pytest.raises(TrainingError, match=rf"{name} needs the package {package}.*pip install"):
        check_optimizer(settings(name), on_cpu=False)


def test_the_plan_counts_what_it_keeps() -> None:
    million = 1_000_000
    assert state_bytes(settings("adamw"), million) == 8 * million
    assert state_bytes(settings("sgd"), million) == 0
    assert state_bytes(settings("adamw_8bit"), million) == pytest.approx(2 * million, rel=0.02)
    assert state_bytes(settings("lion"), million) == 4 * million
    for name in PRESENT:
        weight = torch.nn.Parameter(torch.ones(256, 256))
        optimizer = create_optimizer(settings(name), [{"params": [weight]}], on_cpu=True)
        if name in COMPILED:
            continue
        weight.sum().backward()
        optimizer.step()
        kept = [v for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)]
        # Tables of the 8-bit codes are shared by all weights.
        size = sum(v.numel() * v.element_size() for v in kept if v.numel() not in (1, 256))
        assert size == pytest.approx(state_bytes(settings(name), weight.numel()), abs=9000), name
