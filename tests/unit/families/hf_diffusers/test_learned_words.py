"""Learned words: served as the stock pipeline understands them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from tests.support.image_models import make_cfg, open_model, save_model
from truthgpt_serve.errors import ConfigError

WIDE = "learned_embeds_2.safetensors"


def _rows(pipeline: Any, encoder: str, seed: int, width: int | None = None) -> Any:
    weight = getattr(pipeline, encoder).get_input_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, width or weight.shape[1], generator=generator) * float(
        weight.detach().std()
    )


async def test_a_word_of_two_vectors_for_both_encoders(tmp_path: Path) -> None:
    weights = save_model("sdxl", tmp_path / "sdxl")
    stock = DiffusionPipeline.from_pretrained(weights)
    stock.set_progress_bar_config(disable=True)
    words = tmp_path / "words"
    words.mkdir()
    for encoder, name in (("text_encoder", "learned_embeds.safetensors"), ("text_encoder_2", WIDE)):
        rows = _rows(stock, encoder, 1)
        save_file({"<toy>": rows}, words / name)
        stock.load_textual_inversion(
            {"<toy>": rows},
            text_encoder=getattr(stock, encoder),
            tokenizer=getattr(stock, encoder.replace("text_encoder", "tokenizer")),
        )
    asked = {"prompt": "a <toy>", "width": 32, "height": 32}
    expected = stock(
        **asked,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    inputs = {**asked, "steps": 2, "seed": 5}
    with open_model(
        make_cfg(weights, {"textual_inversion": [str(words)], "min_edge": 32})
    ) as model:
        known = await model.infer(inputs)
    with open_model(make_cfg(weights, {"min_edge": 32})) as model:
        unknown = await model.infer(inputs)
    shown = np.asarray(known["image"], dtype=np.float32) / 255
    assert float(np.abs(shown - expected).max()) <= 1.5 / 255
    assert (np.asarray(unknown["image"]) != np.asarray(known["image"])).any()
    tokens = stock.tokenizer("a <toy> <toy>_1").input_ids
    assert known["usage"]["input_tokens"] == len(tokens) == 5


def test_what_is_no_word_of_the_model_is_named(tmp_path: Path) -> None:
    weights = save_model("sd", tmp_path / "sd")
    place = r"serving\.engine\.textual_inversion\[0\]"
    stock = DiffusionPipeline.from_pretrained(weights)
    wide = tmp_path / "wide.safetensors"
    save_file({"<toy>": _rows(stock, "text_encoder", 1, width=7)}, wide)
    faults = {str(wide): "has the width 7, and text_encoder", str(tmp_path): "has none of learned"}
    for name, words in faults.items():
        with (
            pytest.raises(ConfigError, match=f"{place}.*{words}"),
            open_model(make_cfg(weights, {"textual_inversion": [name]})),
        ):
            pass
