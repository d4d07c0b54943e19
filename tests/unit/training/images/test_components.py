"""What image training learns beside a denoiser, compared with losses computed here directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, DiffusionPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file

from tests.support.training_images import (
    EDGE,
    make_cfg,
    run,
    run_workers,
    save_images,
    save_pipeline,
)
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import controlnet, denoiser, textual_inversion
from truthgpt_serve.training.images.data.draws import Augmentation, draw_for_training
from truthgpt_serve.training.images.data.sampling_order import Order
from truthgpt_serve.training.job import TrainingJob

LATENT = (4, 16, 16)
WORD = {"placeholder": "<toy>", "initializer": "cat", "num_vectors": 2}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with hints beside them: the same square in gray."""
    folder = save_images(tmp_path_factory.mktemp("data") / "images")
    lines = []
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        hint = folder / "hints" / row["file_name"]
        hint.parent.mkdir(exist_ok=True)
        Image.open(folder / row["file_name"]).convert("L").save(hint)
        lines.append(json.dumps({**row, "conditioning_image": f"hints/{row['file_name']}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _job(cfg: dict[str, Any], folder: Path) -> TrainingJob:
    return TrainingJob(cfg=cfg, folder=folder, checkpoint=None, num_workers=1)


def _pixels(file: Path) -> Any:
    """Center square of an image, in [0, 1], computed apart from the product."""
    image = Image.open(file).convert("RGB")
    left = (image.width - EDGE) // 2
    image = image.crop((left, 0, left + EDGE, EDGE))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


class _Direct:
    """The objective of Diffusers' examples on the first step's random numbers."""

    def __init__(self, folder: Path, cfg: dict[str, Any]) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(folder)
        self.schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.seed = cfg["seed"]

    def noised(self, pixels: Any, *, prior: bool = False) -> tuple[Any, Any, Any]:
        draws = [
            draw_for_training(self.seed, position, LATENT, prior=prior)
            for position in range(len(pixels))
        ]
        noise, posterior = (
            torch.stack([torch.from_numpy(getattr(one, name)) for one in draws])
            for name in ("noise", "posterior")
        )
        levels = torch.tensor([one.level for one in draws])
        steps = (levels * self.schedule.config.num_train_timesteps).long()
        vae = self.pipeline.vae
        found = vae.encode(pixels * 2 - 1).latent_dist
        latents = (found.mean + found.std * posterior) * vae.config.scaling_factor
        return self.schedule.add_noise(latents, noise, steps), steps, noise

    def told(self, captions: list[str]) -> Any:
        tokens = self.pipeline.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        return self.pipeline.text_encoder(tokens.input_ids)[0]


def _rows(cfg: dict[str, Any], count: int) -> list[int]:
    order = Order(count, cfg["seed"], 4, 1, 1)
    return [order.row(position) for position in range(4)]


def _caption(row: int) -> str:
    return f"a {('red', 'green', 'blue', 'orange')[row % 4]} square {row}"


def test_a_controlnet_learns_by_diffusers_objective(sd: Path, images: Path, tmp_path: Path) -> None:
    cfg = make_cfg(sd, images, training={"component": "controlnet", "max_steps": 4})
    facts = controlnet.prepare(_job(cfg, tmp_path / "run"))
    losses = run(cfg, tmp_path / "run").losses
    direct, rows = _Direct(sd, cfg), _rows(cfg, 8)
    unet = direct.pipeline.unet
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    pixels = torch.stack([_pixels(images / f"{row}.png") for row in rows])
    hints = torch.stack([_pixels(images / f"hints/{row}.png") for row in rows])
    with torch.no_grad():
        noisy, steps, noise = direct.noised(pixels)
        told = direct.told([_caption(row) for row in rows])
        down, mid = net(noisy, steps, told, hints, return_dict=False)
        output = unet(
            noisy,
            steps,
            told,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
    assert losses[0] == pytest.approx(float((output - noise).square().mean()), abs=1e-5)
    result = ControlNetModel.from_pretrained(tmp_path / "run/model")
    assert facts.num_trainable == sum(one.numel() for one in result.parameters())
    blocks = [one for one in result.controlnet_down_blocks.parameters() if one.ndim > 1]
    # They begin at zero.
    assert max(float(one.detach().abs().max()) for one in blocks) > 0


def test_a_learned_word_changes_nothing_else(sd: Path, images: Path, tmp_path: Path) -> None:
    training = {"component": "textual_inversion", "textual_inversion": WORD, "max_steps": 4}
    cfg = make_cfg(sd, images, training=training, data={"caption": "a <toy>"})
    facts = textual_inversion.prepare(_job(cfg, tmp_path / "run"))
    losses = run(cfg, tmp_path / "run").losses
    rows = load_file(tmp_path / "run/model/learned_embeds.safetensors")["<toy>"]
    assert facts.num_trainable == rows.numel()
    direct, chosen = _Direct(sd, cfg), _rows(cfg, 8)
    pipeline = direct.pipeline
    before = pipeline.text_encoder.get_input_embeddings().weight.detach().clone()
    start = before[pipeline.tokenizer.encode("cat", add_special_tokens=False)[0]]
    assert float((rows - start).abs().max()) > 1e-4
    # What it began with, loaded as Diffusers loads a learned word.
    pipeline.load_textual_inversion({"<toy>": start.repeat(2, 1)})
    pixels = torch.stack([_pixels(images / f"{row}.png") for row in chosen])
    with torch.no_grad():
        noisy, steps, noise = direct.noised(pixels)
        told = direct.told(["a <toy> <toy>_1"] * 4)
        output = pipeline.unet(noisy, steps, told).sample
    assert losses[0] == pytest.approx(float((output - noise).square().mean()), abs=1e-5)
    loaded = DiffusionPipeline.from_pretrained(sd)
    loaded.load_textual_inversion(str(tmp_path / "run/model"))
    after = loaded.text_encoder.get_input_embeddings().weight.detach()
    ids = loaded.tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1"])
    assert torch.equal(after[ids], rows)
    assert torch.equal(after[: len(before)], before)


def test_the_class_is_preserved_by_images_that_the_model_makes(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    prior = {"prompt": "a square", "num_images": 6, "weight": 0.5, "steps": 2}
    cfg = make_cfg(sd, images, training={"prior": prior, "max_steps": 2})
    plan = denoiser.prepare(_job(cfg, tmp_path / "run"))
    assert plan.sources[-1] == (
        "prior    6 images of 'a square'; 6 are made before training, 2 steps each"
    )
    losses = run(cfg, tmp_path / "run").losses
    made = sorted((tmp_path / "run/prior").iterdir())
    assert [file.name for file in made] == [f"{index:05d}.png" for index in range(6)]
    direct, rows = _Direct(sd, cfg), _rows(cfg, 8)
    classes = _rows(cfg, 6)
    with torch.no_grad():
        parts = []
        for files, captions, is_prior in (
            ([images / f"{row}.png" for row in rows], [_caption(row) for row in rows], False),
            ([made[row] for row in classes], ["a square"] * 4, True),
        ):
            pixels = torch.stack([_pixels(file) for file in files])
            noisy, steps, noise = direct.noised(pixels, prior=is_prior)
            output = direct.pipeline.unet(noisy, steps, direct.told(captions)).sample
            parts.append(float((output - noise).square().mean()))
    assert losses[0] == pytest.approx(parts[0] + 0.5 * parts[1], abs=1e-5)


def test_buckets_cut_less_off_and_go_on_exactly(sd: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, size in enumerate([(64, 32), (32, 64), (40, 40)] * 4):
        Image.new("RGB", size, (20 * index, 90, 200)).save(folder / f"{index:02d}.png")
    data = {"caption": "a plain", "aspect_ratio_buckets": True, "bucket_step": 8}
    augmented = {**data, "random_flip": True, "eval_share": 0.25}
    cfg = make_cfg(sd, folder, training={"checkpoint_every": 3}, data=augmented)
    plan = denoiser.prepare(_job(cfg, tmp_path / "run"))
    assert len(plan.size_counts) == 3
    assert any(line.startswith("buckets  ") for line in plan.sources)
    whole = run(cfg, tmp_path / "run")
    resumed = run(cfg, tmp_path / "run", resume=True)
    assert resumed.first_step in (6, 8)
    assert resumed.losses == pytest.approx(whole.losses[resumed.first_step :], rel=1e-6)
    assert all(np.isfinite(whole.losses + whole.evaluations))


def test_sdxl_is_told_the_size_of_each_image_and_its_cut(images: Path, tmp_path: Path) -> None:
    weights = save_pipeline("sdxl", tmp_path / "weights")
    data = {"crop": "random"}
    cfg = make_cfg(weights, images, training={"max_steps": 1}, data=data)
    losses = run(cfg, tmp_path / "run").losses
    direct, rows = _Direct(weights, cfg), _rows(cfg, 8)
    pipeline = direct.pipeline
    # Images of 40x32 pixels, of which up to 8 are cut off on the left.
    crops = Augmentation(crop=True)
    cuts = [draw_for_training(cfg["seed"], one, LATENT, crops).cut for one in range(4)]
    pixels, places = [], []
    for row, cut in zip(rows, cuts, strict=True):
        image = Image.open(images / f"{row}.png").convert("RGB")
        fitted = ImageOps.fit(
            image, (EDGE, EDGE), Image.Resampling.LANCZOS, centering=(cut.left, 0.5)
        )
        pixels.append(torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1))
        places.append([32, 40, 0, round(8 * cut.left), EDGE, EDGE])
    assert len({place[3] for place in places}) > 1
    with torch.no_grad():
        noisy, steps, noise = direct.noised(torch.stack(pixels))
        embeds, _, pooled, _ = pipeline.encode_prompt(
            [_caption(row) for row in rows], do_classifier_free_guidance=False
        )
        added = {"text_embeds": pooled, "time_ids": torch.tensor(places, dtype=torch.float32)}
        output = pipeline.unet(noisy, steps, embeds, added_cond_kwargs=added).sample
    assert losses[0] == pytest.approx(float((output - noise).square().mean()), abs=1e-5)


def test_two_workers_share_buckets_and_the_class(sd: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index, size in enumerate([(64, 32), (32, 64)] * 4):
        Image.new("RGB", size, (20 * index, 90, 200)).save(folder / f"{index}.png")
    data = {"caption": "a plain", "aspect_ratio_buckets": True, "bucket_step": 8}
    prior = {"prompt": "a square", "images": str(images), "num_images": 6}
    sizes = {"train_batch_size": 2, "max_steps": 3, "prior": prior}
    alone = {**sizes, "grad_accum_steps": 2}
    one = run(make_cfg(sd, folder, training=alone, data=data), tmp_path / "one")
    shared = {**sizes, "grad_accum_steps": 1}
    told = run_workers(make_cfg(sd, folder, training=shared, data=data), tmp_path / "two", 2)
    assert told[0] == told[1]
    assert told[0] == pytest.approx(one.losses, rel=1e-4)
    assert not (tmp_path / "one/prior").exists()


def test_what_does_not_fit_is_refused_before_training(
    sd: Path, images: Path, tmp_path: Path
) -> None:
    def refused(loop: Any, words: str, **sections: Any) -> None:
        with pytest.raises(TrainingError, match=words):
            loop.prepare(_job(make_cfg(sd, images, **sections), tmp_path / "run"))

    def learn(**more: Any) -> dict[str, Any]:
        inversion = {**WORD, **more}
        return {"component": "textual_inversion", "textual_inversion": inversion}

    known = learn(placeholder="cat")
    refused(
        textual_inversion,
        "placeholder: 'cat' is a token already",
        training=known,
        data={"caption": "a cat"},
    )
    several = learn(initializer="cat dog")
    refused(
        textual_inversion,
        "initializer: 'cat dog' is 2 tokens",
        training=several,
        data={"caption": "a <toy>"},
    )
    refused(textual_inversion, "does not have the placeholder '<toy>'", training=learn())
    refused(denoiser, "the image is 40x32, and data.min_edge is 33", data={"min_edge": 33})
    other = tmp_path / "small.png"
    Image.new("RGB", (8, 8)).save(other)
    line = {"file_name": str(images / "0.png"), "text": "a", "conditioning_image": str(other)}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**line, "image": line["file_name"]}) + "\n")
    refused(
        controlnet,
        "rows.jsonl:1: 'conditioning_image' is 8x8 and the image 40x32",
        training={"component": "controlnet"},
        data={"dataset": str(rows)},
    )
