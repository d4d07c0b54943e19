"""Adapters of pipelines: trained further, on top of others, on quantized weights, with encoders."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from tests.support.image_models import make_cfg as make_serving_cfg
from tests.support.image_models import open_model
from tests.support.training_images import (
    EDGE,
    distance,
    make_cfg,
    read_weights,
    run,
    save_images,
    save_pipeline,
)
from truthgpt_serve.config import load_model_args
from truthgpt_serve.takeaway.merge import merge
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import denoiser
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.serving import serving_of

LORA = {"enabled": True, "r": 4, "dropout": 0.0}
STACK = {**LORA, "stack": True}
INPUTS = {"prompt": "a red square", "steps": 2, "seed": 5, "width": EDGE, "height": EDGE}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _cfg(
    weights: Path, images: Path, adapter: Any = (), lora: Any = None, **more: Any
) -> dict[str, Any]:
    optim = {"lora": lora} if lora else {}
    training = {"max_steps": 3, "learning_rate": 1e-2, **more.pop("training", {})}
    model = {"name_or_path": str(weights), "adapter": [str(one) for one in adapter]}
    optim |= more.pop("model_optim", {})
    return make_cfg(weights, images, model=model, training=training, model_optim=optim, **more)


def _prepare(cfg: dict[str, Any], folder: Path) -> Any:
    return denoiser.prepare(TrainingJob(cfg, folder, None, 1))


@pytest.fixture(scope="module")
def first(sd: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an adapter for the UNet and the text encoder."""
    folder = tmp_path_factory.mktemp("first") / "run"
    run(_cfg(sd, images, lora=LORA, training={"train_text_encoder": True}), folder)
    return folder


def _draw(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(5)
    size = {"width": EDGE, "height": EDGE, "num_inference_steps": 2, "output_type": "np"}
    return pipeline(INPUTS["prompt"], generator=seed, **size).images[0]


def _record(cfg: dict[str, Any]) -> dict[str, Any]:
    return {"config": json.loads(json.dumps(cfg))}


async def _serve(cfg: dict[str, Any], folder: Path) -> Any:
    """Returns what the result draws, loaded from the lines that serve it."""
    served = serving_of(_record(cfg), folder / "model")
    args = load_model_args(served.args, place="args").to_cfg()
    serving = make_serving_cfg(Path(args["model"]["name_or_path"]))
    inputs = dict(INPUTS)
    if served.adapter:
        inputs["adapters"] = {served.adapter["name"]: 1.0}
    for key in ("model", "serving"):
        serving[key] = {**serving[key], **args[key]}
    with open_model(serving) as model:
        return np.asarray((await model.infer(inputs))["image"], dtype=np.float32) / 255


@pytest.mark.long("trains several times")
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
async def test_the_text_encoders_adapter_is_merged_and_served(
    sd: Path, images: Path, first: Path, tmp_path: Path
) -> None:
    saved = read_weights(first / "model")
    assert {name.partition(".")[0] for name in saved} == {"unet", "text_encoder"}
    cfg = _cfg(sd, images, lora=LORA, training={"train_text_encoder": True})
    assert _prepare(cfg, tmp_path).num_trainable == sum(one.numel() for one in saved.values())
    pipeline = DiffusionPipeline.from_pretrained(sd)
    before = _draw(pipeline)
    pipeline.load_lora_weights(str(first / "model"))
    adapted = _draw(pipeline)
    assert np.abs(adapted - before).max() > 0.01
    merged, _ = merge(first / "model", base=str(sd), out=tmp_path / "merged")
    assert np.abs(_draw(DiffusionPipeline.from_pretrained(merged)) - adapted).max() <= 1e-3
    assert np.abs(await _serve(cfg, first) - adapted).max() <= 2 / 255


@pytest.mark.long("trains several times")
async def test_an_adapter_is_trained_further_or_stays_below(
    sd: Path, images: Path, first: Path, tmp_path: Path
) -> None:
    path, encoder = first / "model", {"train_text_encoder": True, "checkpoint_every": 2}
    further = _cfg(sd, images, [path], training=encoder)
    facts = _prepare(further, tmp_path)
    assert facts.num_trainable == sum(one.numel() for one in read_weights(path).values())
    one = run(further, tmp_path / "further")
    again = run(further, tmp_path / "further", resume=True)
    assert again.losses == one.losses[again.first_step :]
    assert 0 < distance(read_weights(path), read_weights(tmp_path / "further/model")) < 0.1
    stacked = _cfg(sd, images, [path], STACK)
    other = run(stacked, tmp_path / "stacked")
    # Both begin with what the first run has learned, which nothing else has.
    assert other.losses[0] == pytest.approx(one.losses[0], rel=1e-5)
    fresh = run(_cfg(sd, images, lora=LORA, training={"max_steps": 1}), tmp_path / "fresh")
    assert abs(fresh.losses[0] - one.losses[0]) > 1e-4
    names = {name.partition(".")[0] for name in read_weights(tmp_path / "stacked/model")}
    assert names == {"unet"}
    pipeline = DiffusionPipeline.from_pretrained(sd)
    for folder in (path, tmp_path / "stacked/model"):
        pipeline.load_lora_weights(str(folder), adapter_name="one")
        pipeline.fuse_lora(components=pipeline._lora_loadable_modules, adapter_names=["one"])
        pipeline.unload_lora_weights()
    drawn = await _serve(stacked, tmp_path / "stacked")
    assert np.abs(drawn - _draw(pipeline)).max() <= 2 / 255


@pytest.mark.long("trains several times")
@pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="needs torchao")
def test_an_adapter_learns_on_quantized_weights(sd: Path, images: Path, tmp_path: Path) -> None:
    optim = {"quantization": "torchao-int8"}
    steps = {"max_steps": 8, "checkpoint_every": 5}
    cfg = _cfg(sd, images, lora=LORA, model_optim=optim, training=steps)
    plain = _cfg(sd, images, lora=LORA, training=steps)
    facts, usual = _prepare(cfg, tmp_path), _prepare(plain, tmp_path)
    assert facts.num_trainable == usual.num_trainable
    assert facts.weight_bytes < usual.weight_bytes
    assert any("(torchao-int8)" in note for note in facts.notes)
    one = run(cfg, tmp_path / "run")
    again = run(cfg, tmp_path / "run", resume=True)
    assert again.losses == one.losses[again.first_step :]
    exact = run(plain, tmp_path / "plain")
    assert one.losses != exact.losses
    assert one.losses == pytest.approx(exact.losses, rel=0.02)
    # The adapter fits the weights in any format.
    path = tmp_path / "run/model"
    further = _cfg(sd, images, [path], model_optim=optim, training={"max_steps": 1})
    whole = _cfg(sd, images, [path], training={"max_steps": 1})
    losses = [run(two, tmp_path / str(n)).losses[0] for n, two in enumerate((further, whole))]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_an_adapter_that_does_not_fit_is_refused(
    sd: Path, images: Path, first: Path, tmp_path: Path
) -> None:
    def refused(words: str, cfg: dict[str, Any], *, trained: bool = False) -> None:
        with pytest.raises(TrainingError, match=words):
            (run if trained else _prepare)(cfg, tmp_path / "run")

    path = first / "model"
    refused(
        r"^model.adapter: .* is for text_encoder too, .*train_text_encoder: true, or .*stack",
        _cfg(sd, images, [path]),
    )
    refused(r"^model.adapter: .*images cannot be added", _cfg(sd, images, [images]))
    unet = {k: v for k, v in read_weights(path).items() if k.startswith("unet.")}
    other = tmp_path / "other"
    other.mkdir()
    unet["unet.no.such.layer.lora_A.weight"] = torch.zeros(4, 8)
    unet["unet.no.such.layer.lora_B.weight"] = torch.zeros(8, 4)
    save_file(unet, other / "pytorch_lora_weights.safetensors")
    refused(r"^model.adapter: .*other cannot be added", _cfg(sd, images, [other]), trained=True)
    for component in ("vae", "controlnet"):
        given = _cfg(sd, images, [path], training={"component": component})
        refused(r"^model.adapter: is of no use .*truthgpt merge", given, trained=True)
        optim = {"quantization": "torchao-int8"}
        given = _cfg(sd, images, model_optim=optim, training={"component": component})
        refused(r"^model_optim.quantization: is of no use", given, trained=True)
    quantized = {"quantization": "torchao-int8"}
    if importlib.util.find_spec("torchao"):
        refused(
            r"^model_optim.quantization: adapters are not added .*merge",
            _cfg(sd, images, [path], STACK, model_optim=quantized),
        )
    assert load_file(path / "pytorch_lora_weights.safetensors")
