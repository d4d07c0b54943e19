"""Loading of models: device, number format, attention, quantization."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from deployments.hf_transformers.acceleration import choose_attention
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.tiny_transformers.models import make_tiny_encoder
from tests.support.transformers_models import configuration, loaded
from truthgpt_serve.device import choose_device, choose_dtype
from truthgpt_serve.errors import ConfigError


def test_the_device_and_the_number_format() -> None:
    cpu = torch.device("cpu")
    assert choose_device({"gpus": 0, "device": "auto"}, torch) == cpu
    assert choose_dtype("auto", torch.float16, cpu, torch) is torch.float32
    assert choose_dtype("auto", torch.bfloat16, cpu, torch) is torch.bfloat16
    assert choose_dtype("auto", None, cpu, torch) is torch.float32
    assert choose_dtype("float16", torch.float32, cpu, torch) is torch.float16
    if not torch.cuda.is_available():
        assert choose_device({"gpus": "auto", "device": "auto"}, torch) == cpu
        with pytest.raises(ConfigError, match=r"hardware.gpus: 1 asks for a GPU, and torch"):
            choose_device({"gpus": 1, "device": "auto"}, torch)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def vectors(cfg: dict[str, Any]) -> tuple[Any, Any]:
    texts = [{"text": "the cat"}, {"text": "a small red dog runs"}]
    with loaded(cfg) as model:
        answers = model.infer_batch(texts)
        return numpy.stack([answer["embedding"] for answer in answers]), model._engine


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_attention_that_works_is_taken(name: str, encoder: Path) -> None:
    expected, _ = vectors(configuration(encoder, "embedding"))
    cfg = configuration(encoder, "embedding", sections={"model_optim": {"attention": name}})
    found, engine = vectors(cfg)
    assert engine.attention == ("sdpa" if name == "auto" else name)
    assert engine._model.config._attn_implementation == engine.attention
    numpy.testing.assert_allclose(found, expected, atol=2e-6)


def test_attention_that_fails_is_refused_with_the_reason(encoder: Path) -> None:
    with loaded(configuration(encoder, "embedding")) as model:
        engine = model._engine

        def trial() -> torch.Tensor:
            found: torch.Tensor = engine.trial()
            return found

        if importlib.util.find_spec("flash_attn") is None:
            with pytest.raises(ConfigError, match="flash_attention_2 does not work with torch"):
                choose_attention("flash_attention_2", engine._model, trial)

        def broken() -> torch.Tensor:
            found = trial()
            wrong = engine._model.config._attn_implementation == "sdpa"
            return found + 1 if wrong else found

        with pytest.raises(ConfigError, match="differs from that with eager attention"):
            choose_attention("sdpa", engine._model, broken)
        assert choose_attention("auto", engine._model, broken) == "eager"


def test_lower_precision_stays_near(encoder: Path) -> None:
    expected, _ = vectors(configuration(encoder, "embedding"))
    cfg = configuration(encoder, "embedding", sections={"model_optim": {"dtype": "bfloat16"}})
    found, engine = vectors(cfg)
    assert engine._model.dtype is torch.bfloat16
    assert (found * expected).sum(axis=1).min() > 0.99


def test_quantization_is_smaller_or_says_what_is_missing(encoder: Path) -> None:
    sections = {"model_optim": {"quantization": "torchao-int8"}}
    cfg = configuration(encoder, "embedding", sections=sections)
    if importlib.util.find_spec("torchao") is None:
        with pytest.raises(ConfigError, match=r"needs the package torchao.*pip install torchao"):
            loaded(cfg).__enter__()
        return
    expected, plain = vectors(configuration(encoder, "embedding"))
    found, engine = vectors(cfg)
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
