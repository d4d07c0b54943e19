"""Loading of models: number format, quantization, files that are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.transformers_models import configuration, embed, loaded
from truthgpt_serve.errors import ConfigError


def test_lower_precision_stays_near(encoder: Path) -> None:
    expected, _ = embed(configuration(encoder, "embedding"))
    cfg = configuration(encoder, "embedding", sections={"model_optim": {"dtype": "bfloat16"}})
    found, engine = embed(cfg)
    assert engine._model.dtype is torch.bfloat16
    assert (found * expected).sum(axis=1).min() > 0.99


def test_quantization_is_smaller_or_says_what_is_missing(encoder: Path) -> None:
    sections = {"model_optim": {"quantization": "torchao-int8"}}
    cfg = configuration(encoder, "embedding", sections=sections)
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(ConfigError, match=r"needs the package torchao.*pip install torchao"):
            loaded(cfg).__enter__()
        return
    expected, plain = embed(configuration(encoder, "embedding"))
    found, engine = embed(cfg)
    assert (found * expected).sum(axis=1).min() > 0.99
    assert (found != expected).any()
    layers = [
        model._model.encoder.layer[0].attention.self.query.weight for model in (plain, engine)
    ]
    assert "Int8" in type(layers[1]).__name__
    assert "Int8" not in type(layers[0]).__name__


def test_quantization_for_gpus_is_refused_without_one(encoder: Path) -> None:
    sections = {"model_optim": {"quantization": "bitsandbytes-8bit"}, "hardware": {"gpus": "auto"}}
    cfg = configuration(encoder, "embedding", sections=sections)
    if importlib.util.find_spec("bitsandbytes") and torch.cuda.is_available():
        with loaded(cfg) as model:
            assert model.infer({"text": "the cat"})["num_tokens"] == 4
        return
    with pytest.raises(ConfigError, match=r"bitsandbytes-8bit needs (the package|an NVIDIA GPU)"):
        loaded(cfg).__enter__()


def test_weights_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for task in ("text-generation", "embedding"):
        with pytest.raises(ConfigError, match="cannot be loaded as a transformers model"):
            loaded(configuration(tmp_path, task)).__enter__()
    llama = make_tiny_llama(tmp_path / "llama")
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be loaded as a tokenizer"):
        loaded(configuration(llama)).__enter__()
