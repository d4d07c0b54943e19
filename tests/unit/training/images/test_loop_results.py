"""What image training gives: adapters, encoders, averages, the best evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from tests.support.image_models import make_cfg as make_serving_cfg
from tests.support.image_models import open_model
from tests.support.training_images import (
    EDGE,
    distance,
    load_result,
    make_cfg,
    read_weights,
    run,
    save_images,
    save_pipeline,
)
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import latents
from truthgpt_serve.training.images.data.image_files import Size, load_image
from truthgpt_serve.training.images.state import WEIGHTS
from truthgpt_serve.training.run_folder import checkpoints


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _draw(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a red square",
        num_inference_steps=3,
        width=EDGE,
        height=EDGE,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    return images[0]


def _read(file: Path) -> dict[str, Any]:
    """Returns the trained weights of a checkpoint, by their names in the UNet."""
    return {name.removeprefix("unet."): value for name, value in load_file(file).items()}


def _pixels(image: Image.Image) -> Any:
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
async def test_an_adapter_is_loaded_by_diffusers_and_by_the_engine(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    lora = {"enabled": True, "r": 4, "alpha": 16.0, "dropout": 0.0}
    training = {"learning_rate": 1e-2, "max_steps": 12}
    cfg = make_cfg(sd, images, training=training, model_optim={"lora": lora})
    losses = run(cfg, tmp_path / "run").losses
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    plain = DiffusionPipeline.from_pretrained(sd)
    without = _draw(plain)
    plain.load_lora_weights(str(tmp_path / "run/model"))
    (name,) = plain.unet.peft_config
    # The strength of the adapter travels with it.
    assert plain.unet.peft_config[name].lora_alpha == 16
    adapted = _draw(plain)
    assert float(np.abs(adapted - without).max()) > 0.02
    adapters = [{"name": "squares", "path": str(tmp_path / "run/model")}]
    serving = make_serving_cfg(sd, serving={"adapters": adapters})
    inputs = {"prompt": "a red square", "steps": 3, "seed": 5, "width": EDGE, "height": EDGE}
    with open_model(serving) as model:
        served = _pixels((await model.infer(inputs))["image"])
        asked = {**inputs, "adapters": {"squares": 1.0}}
        shown = _pixels((await model.infer(asked))["image"])
    assert float(np.abs(served - without).max()) <= 1 / 255
    assert float(np.abs(shown - adapted).max()) <= 1 / 255


def test_the_text_encoder_is_trained_and_saved(sd: Path, images: Path, tmp_path: Path) -> None:
    training = {"train_text_encoder": True, "caption_dropout": 0.3}
    optim = {"gradient_checkpointing": True}
    run(make_cfg(sd, images, training=training, model_optim=optim), tmp_path / "run")
    for part in ("unet", "text_encoder"):
        saved = read_weights(tmp_path / "run/model" / part)
        assert distance(saved, read_weights(sd / part)) > 1e-4, part
    assert _draw(load_result(tmp_path / "run")).shape == (EDGE, EDGE, 3)


def test_the_average_is_the_result(sd: Path, images: Path, tmp_path: Path) -> None:
    training = {"max_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 4, "ema_decay": 0.6}
    run(make_cfg(sd, images, training=training), tmp_path / "run")
    first, *others = [_read(one / WEIGHTS) for one in checkpoints(tmp_path / "run")]
    # The decay itself rises at first: 2/11, then 3/12, 4/13 in steps 2 to 4.
    average = dict(first)
    for count, weights in enumerate(others, 1):
        decay = (1 + count) / (10 + count)
        average = {
            name: decay * value + (1 - decay) * weights[name] for name, value in average.items()
        }
    result = read_weights(tmp_path / "run/model/unet")
    assert distance(result, average) < 1e-6
    assert distance(result, others[-1]) > 1e-5


def test_it_stops_early_and_gives_the_best(sd: Path, images: Path, tmp_path: Path) -> None:
    # The rate is so high that the loss soon rises again.
    training = {
        "max_steps": 40,
        "learning_rate": 0.05,
        "eval_every": 1,
        "early_stopping_patience": 3,
        "keep_checkpoints": 1,
    }
    cfg = make_cfg(sd, images, training=training, data={"eval_dataset": str(images)})
    monitor = run(cfg, tmp_path / "run")
    assert len(monitor.losses) < 40
    best = int(np.argmin(monitor.evaluations)) + 1
    assert len(monitor.evaluations) == best + 3
    assert f"step-{best}" in [one.name for one in checkpoints(tmp_path / "run")]
    saved = _read(tmp_path / f"run/checkpoints/step-{best}" / WEIGHTS)
    assert distance(read_weights(tmp_path / "run/model/unet"), saved) == 0


def test_the_result_has_the_wanted_number_format(sd: Path, images: Path, tmp_path: Path) -> None:
    optim = {"dtype": "bfloat16"}
    cfg = make_cfg(sd, images, training={"max_steps": 1}, model_optim=optim)
    run(cfg, tmp_path / "run")
    kinds = {one.dtype for one in read_weights(tmp_path / "run/model/unet").values()}
    assert kinds == {torch.bfloat16}
    # `auto` keeps what it began with.
    cfg = make_cfg(tmp_path / "run/model", images, training={"max_steps": 1})
    run(cfg, tmp_path / "again")
    kinds = {one.dtype for one in read_weights(tmp_path / "again/model/unet").values()}
    assert kinds == {torch.bfloat16}


@pytest.mark.long("trains several times")
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_the_autoencoder_learns_and_knows_its_scale(
    kind: str, images: Path, tmp_path: Path
) -> None:
    weights = save_pipeline(kind, tmp_path / "weights")
    training = {"component": "vae", "max_steps": 40, "learning_rate": 3e-3, "eval_every": 20}
    cfg = make_cfg(weights, images, training=training, data={"eval_dataset": str(images)})
    monitor = run(cfg, tmp_path / "run")
    assert monitor.evaluations[1] < monitor.evaluations[0] < monitor.losses[0]
    vae = load_result(tmp_path / "run").vae
    pixels = [load_image(images / f"{index}.png", Size(EDGE, EDGE)).pixels for index in range(8)]
    stacked = torch.stack([torch.from_numpy(one) for one in pixels])
    drawn = [
        latents.draw_latents(
            latents.encode_moments(vae, stacked),
            torch.randn(8, *_latent_shape(vae), generator=torch.Generator().manual_seed(seed)),
        )
        for seed in range(8)
    ]
    shift = vae.config.shift_factor if kind == "sd3" else 0.0
    seen = (torch.cat(drawn) - shift) * vae.config.scaling_factor
    assert float(seen.square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)
    if kind == "sd3":
        assert float(seen.mean()) == pytest.approx(0.0, abs=0.05)
    other = "transformer" if kind == "sd3" else "unet"
    assert (
        distance(read_weights(tmp_path / "run/model" / other), read_weights(weights / other)) == 0
    )


def _latent_shape(vae: Any) -> tuple[int, int, int]:
    edge = EDGE // 2 ** (len(vae.config.block_out_channels) - 1)
    return (vae.config.latent_channels, edge, edge)


def test_settings_of_denoisers_are_refused_for_autoencoders(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    training = {"component": "vae", "caption_dropout": 0.1}
    with pytest.raises(TrainingError, match=r"training\.caption_dropout"):
        run(make_cfg(sd, images, training=training), tmp_path / "run")
