from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_images import (
    CALL_DEFAULTS,
    KINDS,
    VARIANTS,
    create_family,
    create_lora,
    create_pipeline,
    create_variant,
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
def test_each_kind_draws_an_image_that_depends_on_seed_and_prompt(kind: str) -> None:
    pipeline = create_pipeline(kind)
    first = draw(pipeline, kind)
    assert first.shape == (1, 3, 32, 64)
    assert torch.isfinite(first).all()
    assert float(first.std()) > 0.02
    # An image of pixels at the ends of the range would hide differences.
    assert float(((first <= 0) | (first >= 1)).float().mean()) < 0.2
    torch.testing.assert_close(draw(create_pipeline(kind), kind), first, atol=0, rtol=0)
    assert float((draw(create_pipeline(kind, seed=1), kind) - first).abs().max()) > 0.01
    other = draw(pipeline, kind, "an old castle by the sea, golden light")
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
def test_adapters_change_the_image_and_come_from_a_file(kind: str, tmp_path: Path) -> None:
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
