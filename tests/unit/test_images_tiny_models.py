from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from deployments.hf_diffusers.tiny_models import (
    CALL_DEFAULTS,
    KINDS,
    VARIANTS,
    create_family,
    create_lora,
    create_pipeline,
    create_variant,
    save_default_image_model,
    save_lora,
)


def draw(pipeline: Any, kind: str = "sdxl", prompt: str = "a red fox", **more: Any) -> Any:
    inputs = {
        "num_inference_steps": 2,
        "height": 32,
        "width": 64,
        "generator": torch.Generator().manual_seed(7),
        "output_type": "pt",
        **CALL_DEFAULTS.get(kind, {}),
        **more,
    }
    if "controlnet" in kind:
        inputs["image"] = torch.full((1, 3, 32, 64), 0.25)
    return pipeline(prompt=prompt, **inputs).images


def folder_hash(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(folder)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_draws_a_picture_that_depends_on_seed_and_prompt(kind: str) -> None:
    first = draw(create_pipeline(kind), kind)
    assert first.shape == (1, 3, 32, 64)
    assert torch.isfinite(first).all()
    assert float(first.std()) > 0.02
    # A picture of pixels at the ends of the range would hide differences.
    assert float(((first <= 0) | (first >= 1)).float().mean()) < 0.2
    torch.testing.assert_close(draw(create_pipeline(kind), kind), first, atol=0, rtol=0)
    assert float((draw(create_pipeline(kind, seed=1), kind) - first).abs().max()) > 0.01
    other = draw(create_pipeline(kind), kind, "an old castle by the sea, golden light")
    assert float((other - first).abs().max()) > 1e-3


def test_making_a_pipeline_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    create_family("sd")
    assert torch.equal(torch.rand(4), expected)


def test_unknown_kinds_and_variants_are_named() -> None:
    with pytest.raises(ValueError, match="sdxxl"):
        create_pipeline("sdxxl")
    with pytest.raises(ValueError, match="upscaling"):
        create_variant(create_pipeline("sd"), "upscaling")
    with pytest.raises(ValueError, match="ZImagePipeline"):
        create_variant(create_pipeline("zimage"), "controlnet")


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux", "qwen", "zimage"])
def test_variants_share_every_module(kind: str) -> None:
    family = create_family(kind)
    wanted = set(VARIANTS) if kind in ("sd", "sdxl") else {"image-to-image", "inpainting"}
    assert set(family) == {"text-to-image"} | wanted
    own = family["text-to-image"].components
    for variant in family.values():
        for name, part in variant.components.items():
            if name in own and isinstance(part, torch.nn.Module):
                assert part is own[name]


def test_variants_keep_the_type_of_the_weights() -> None:
    pipeline = create_pipeline("sd")
    pipeline.to(dtype=torch.bfloat16)
    for task in VARIANTS:
        assert create_variant(pipeline, task).dtype == torch.bfloat16
    assert pipeline.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["sd", "flux", "zimage"])
def test_adapters_change_the_picture_and_come_from_a_file(kind: str, tmp_path: Path) -> None:
    pipeline = create_pipeline(kind)
    plain = draw(pipeline, kind)
    folder = save_lora(pipeline, tmp_path / "style", seed=5)
    pipeline.load_lora_weights(folder, adapter_name="style")
    changed = draw(pipeline, kind)
    assert float((changed - plain).abs().max()) > 1e-3
    pipeline.set_adapters(["style"], [0.0])
    torch.testing.assert_close(draw(pipeline, kind), plain, atol=1e-6, rtol=0)
    pipeline.unload_lora_weights()
    same = create_lora(pipeline, seed=5)
    pipeline.load_lora_weights(same, adapter_name="style")
    torch.testing.assert_close(draw(pipeline, kind), changed, atol=0, rtol=0)
    assert create_lora(pipeline, seed=5).keys() == same.keys()  # with an adapter loaded, too


def test_pixart_has_no_adapters() -> None:
    with pytest.raises(ValueError, match="PixArtSigmaPipeline"):
        create_lora(create_pipeline("pixart"), seed=1)


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_default_image_model(tmp_path_factory.mktemp("models") / "default")


def test_default_model_draws_quickly(default_model: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(default_model)
    pipeline.set_progress_bar_config(disable=True)
    assert draw(pipeline, height=None, width=None).shape == (1, 3, 128, 128)
    started = time.monotonic()
    picture = draw(pipeline, num_inference_steps=4, height=256, width=192)
    # About 0.1 s on one idle core.
    assert time.monotonic() - started < 5
    assert picture.shape == (1, 3, 256, 192)
    assert torch.isfinite(picture).all()
    assert float(picture.std()) > 0.05
    other = draw(pipeline, num_inference_steps=4, height=256, width=192, prompt="blue sea")
    assert float((picture - other).abs().max()) > 1e-3
    for task in ("image-to-image", "inpainting"):
        assert create_variant(pipeline, task).unet is pipeline.unet


def test_default_model_reads_ordinary_prompts_as_words(default_model: Path) -> None:
    tokenizer = DiffusionPipeline.from_pretrained(default_model).tokenizer
    prompt = "a photo of an astronaut riding a horse on the moon, cinematic lighting, detailed"
    tokens = tokenizer(prompt).input_ids
    assert len(tokens) < 30
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip().startswith("a photo of an")
    assert len(tokenizer("wort " * 200, truncation=True).input_ids) == 77


def test_default_model_is_the_same_bytes_every_time(default_model: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in default_model.rglob("*") if path.is_file())
    assert size < 10_000_000
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, "-m", "deployments.hf_diffusers.tiny_models", "--out", str(again)],
        check=True,
        capture_output=True,
        timeout=100,
    )
    assert folder_hash(again) == folder_hash(default_model)
    other = save_default_image_model(tmp_path / "other", seed=1)
    assert folder_hash(other) != folder_hash(default_model)


def test_default_model_is_not_written_twice_nor_over_something_else(tmp_path: Path) -> None:
    folder = save_default_image_model(tmp_path / "model")
    before = (folder / "model_index.json").stat().st_mtime_ns
    save_default_image_model(folder)
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match="mine"):
        save_default_image_model(tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text(encoding="utf-8") == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]
