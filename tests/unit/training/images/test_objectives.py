"""The losses of 8 steps in float32, compared with training as the scripts of Diffusers do it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, DiffusionPipeline, EulerDiscreteScheduler
from safetensors.torch import load_file

from tests.support.training_direct import Direct, read_pixels
from tests.support.training_images import EDGE, make_cfg, run, save_images_with_hints, save_pipeline
from truthgpt_serve.training.images import controlnet, denoiser, textual_inversion
from truthgpt_serve.training.job import TrainingJob

STEPS = 8
TOLERANCE = 1e-5
WORD = {"placeholder": "<toy>", "initializer": "cat", "num_vectors": 2}
LORA = {"lora": {"enabled": True, "r": 4, "dropout": 0.0}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images_with_hints(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _velocity(pipeline: Any) -> None:
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )


def _cfg(folder: Path, images: Path, **sections: Any) -> dict[str, Any]:
    training = {"max_steps": STEPS, "weight_decay": 0.0, **sections.pop("training", {})}
    return make_cfg(folder, images, training=training, **sections)


def _start(cfg: dict[str, Any], folder: Path) -> Path:
    """Returns what a run begins with, where that is drawn: the result of next to no training."""
    still = {**cfg["training"], "max_steps": 1, "learning_rate": 1e-30}
    run({**cfg, "training": still}, folder)
    return folder / "model"


def _check(losses: list[float], expected: list[float]) -> None:
    assert len(losses) == STEPS
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= TOLERANCE
    assert len({round(one, 4) for one in losses}) > STEPS // 2


@pytest.mark.long("trains with each loss")
@pytest.mark.parametrize(
    ("kind", "change", "gamma"),
    [
        ("sd", None, None),
        ("sd", None, 5.0),
        ("sd", _velocity, 5.0),
        ("sd3", None, None),
        ("flux", None, None),
    ],
    ids=["epsilon", "epsilon-snr", "velocity-snr", "sd3", "flux"],
)
def test_a_denoiser(
    kind: str,
    change: Callable[[Any], None] | None,
    gamma: float | None,
    images: Path,
    tmp_path: Path,
) -> None:
    folder = save_pipeline(kind, tmp_path / "weights", change)
    # Without clipping both are sums of the same terms, whichever way the norm is summed.
    training = {"min_snr_gamma": gamma, "max_grad_norm": 0.0, "learning_rate": 1e-4}
    cfg = _cfg(folder, images, training=training)
    direct = Direct(folder, cfg, images)
    part = direct.pipeline.transformer if direct.is_flow else direct.pipeline.unet

    def loss_of(step: int) -> Any:
        noisy, steps, target = direct.noised(step, direct.pixels(step))
        output = direct.predict(noisy, steps, direct.captions(step))
        return direct.score(output, target, steps)

    _check(run(cfg, tmp_path / "run").losses, direct.run(part.parameters(), loss_of))


@pytest.mark.long("trains several times")
def test_an_adapter_with_images_of_the_class(sd: Path, images: Path, tmp_path: Path) -> None:
    prior = {"prompt": "a square", "num_images": 6, "weight": 0.5, "steps": 2}
    training = {"prior": prior, "learning_rate": 1e-3}
    cfg = _cfg(sd, images, training=training, model_optim=LORA)
    plan = denoiser.prepare(TrainingJob(cfg, tmp_path / "run", None, 1))
    line = "prior    6 images of 'a square'; 6 are made before training, 2 steps each"
    assert plan.sources[-1] == line
    start = _start(cfg, tmp_path / "start")
    losses = run(cfg, tmp_path / "run").losses
    made = sorted((tmp_path / "run/prior").iterdir())
    assert [file.name for file in made] == [f"{index:05d}.png" for index in range(6)]
    direct = Direct(sd, cfg, images)
    direct.pipeline.load_lora_weights(str(start))
    trained = [one for name, one in direct.pipeline.unet.named_parameters() if "lora_" in name]

    def loss_of(step: int) -> Any:
        own = direct.noised(step, direct.pixels(step))
        files = [made[row] for row in direct.rows(step, len(made))]
        pixels = torch.stack([read_pixels(file, EDGE) for file in files])
        others = direct.noised(step, pixels, prior=True)
        noisy, steps, target = map(torch.cat, zip(own, others, strict=True))
        told = [*direct.captions(step), *[prior["prompt"]] * len(files)]
        output = direct.predict(noisy, steps, told)  # type: ignore[arg-type] # texts
        parts = zip(output.chunk(2), target.chunk(2), steps.chunk(2), strict=True)
        own_loss, other_loss = (direct.score(*part) for part in parts)
        return own_loss + 0.5 * other_loss

    _check(losses, direct.run(trained, loss_of))


def test_a_controlnet(sd: Path, images: Path, tmp_path: Path) -> None:
    training = {"component": "controlnet", "learning_rate": 1e-4}
    cfg = _cfg(sd, images, training=training)
    facts = controlnet.prepare(TrainingJob(cfg, tmp_path / "run", None, 1))
    start = _start(cfg, tmp_path / "start")
    direct = Direct(sd, cfg, images)
    net = ControlNetModel.from_pretrained(start)

    def loss_of(step: int) -> Any:
        noisy, steps, target = direct.noised(step, direct.pixels(step))
        hints = direct.pixels(step, "conditioning_image")
        captions = direct.captions(step)
        down, mid = net(noisy, steps, direct.embeds(captions), hints, return_dict=False)
        residuals = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": mid,
        }
        return direct.score(direct.predict(noisy, steps, captions, **residuals), target, steps)

    _check(run(cfg, tmp_path / "run").losses, direct.run(net.parameters(), loss_of))
    result = ControlNetModel.from_pretrained(tmp_path / "run/model")
    assert facts.num_trainable == sum(one.numel() for one in result.parameters())
    blocks = [one for one in result.controlnet_down_blocks.parameters() if one.ndim > 1]
    # They begin at zero.
    assert max(float(one.detach().abs().max()) for one in blocks) > 0


def test_a_word(sd: Path, images: Path, tmp_path: Path) -> None:
    # The script trains all embeddings, does not clip, and puts the others back after each step.
    training = {
        "component": "textual_inversion",
        "textual_inversion": WORD,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-2,
    }
    cfg = _cfg(sd, images, training=training, data={"caption": "a <toy>"})
    direct = Direct(sd, cfg, images)
    pipeline = direct.pipeline
    embeddings = pipeline.text_encoder.get_input_embeddings()
    known = len(embeddings.weight)
    first = embeddings.weight[pipeline.tokenizer.encode("cat", add_special_tokens=False)[0]]
    pipeline.load_textual_inversion({"<toy>": first.detach().repeat(2, 1)})
    weight = pipeline.text_encoder.get_input_embeddings().weight
    before = weight.detach().clone()

    def loss_of(step: int) -> Any:
        with torch.no_grad():
            weight[:known] = before[:known]
        noisy, steps, target = direct.noised(step, direct.pixels(step))
        return direct.score(direct.predict(noisy, steps, ["a <toy> <toy>_1"] * 4), target, steps)

    losses = run(cfg, tmp_path / "run").losses
    _check(losses, direct.run([weight], loss_of))
    rows = load_file(tmp_path / "run/model/learned_embeds.safetensors")["<toy>"]
    assert float((rows - weight[known:]).detach().abs().max()) <= TOLERANCE
    facts = textual_inversion.prepare(TrainingJob(cfg, tmp_path / "run", None, 1))
    assert facts.num_trainable == rows.numel()
    loaded = DiffusionPipeline.from_pretrained(sd)
    loaded.load_textual_inversion(str(tmp_path / "run/model"))
    after = loaded.text_encoder.get_input_embeddings().weight.detach()
    assert torch.equal(after[known : known + 2], rows)
    assert torch.equal(after[:known], before[:known])
