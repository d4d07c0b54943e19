"""A merged pipeline draws what base and adapter draw, and keeps the parts that nobody trained."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tests.support.tiny_images import create_pipeline
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.export import export
from truthgpt_serve.takeaway.merge import merge

EDGE = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "sd"
    create_pipeline("sd").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of UNet and text encoder, with weights that change the image."""
    pipeline = DiffusionPipeline.from_pretrained(base)
    layers, draw = {}, torch.Generator().manual_seed(1)
    for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        module = getattr(pipeline, part)
        module.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        for weight in module.parameters():
            if weight.requires_grad and weight.shape[-1] == 4:
                weight.data = 0.5 * torch.randn(weight.shape, generator=draw)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
        layers[f"{part}_lora_adapter_metadata"] = module.peft_config["default"].to_dict()
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    type(pipeline).save_lora_weights(folder, **layers)
    return folder


def draw(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(5)
    size = {"width": EDGE, "height": EDGE, "num_inference_steps": 2, "output_type": "np"}
    return pipeline("a red square", generator=seed, **size).images[0]


# diffusers writes them into a pipeline that has one already: as the test wants it.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_the_images_are_those_of_base_and_adapter(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder, lines = merge(adapter, base=str(base), out=tmp_path / "merged")
    assert lines == ["merged: text_encoder, unet"] or lines == ["merged: unet, text_encoder"]
    plain = DiffusionPipeline.from_pretrained(base)
    before = draw(plain)
    plain.load_lora_weights(str(adapter))
    adapted = draw(plain)
    merged = draw(DiffusionPipeline.from_pretrained(folder))
    assert np.abs(adapted - before).max() > 0.02
    assert np.abs(merged - adapted).max() <= 1e-3
    name = "diffusion_pytorch_model.safetensors"
    assert (folder / "vae" / name).read_bytes() == (base / "vae" / name).read_bytes()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_the_format_can_be_another(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder, _ = merge(adapter, base=str(base), out=tmp_path / "half", dtype="float16")
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("learned_embeds.safetensors", "", "a learned word"),
        ("config.json", '{"_class_name": "ControlNetModel"}', "a ControlNet"),
    ],
)
def test_what_stands_beside_a_pipeline_is_served_with_it(
    file: str, content: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(content)
    for take in (merge, partial(export, to="safetensors")):
        with pytest.raises(TakeawayError, match=rf": is {what}, .*serve-line"):
            take(tmp_path)


def test_an_adapter_of_another_pipeline_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.zeros(1)}, file)
    with pytest.raises(TakeawayError, match=r"is for transformer, which .* does not have"):
        merge(tmp_path / "lora", base=str(base))
    with pytest.raises(TakeawayError, match=r"names no model .*--base"):
        merge(tmp_path / "lora")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({}))
    with pytest.raises(TakeawayError, match="no folder of a Diffusers pipeline"):
        merge(tmp_path / "lora", base=str(other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "other"]
