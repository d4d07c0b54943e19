"""Attention kernels are taken when they work and give what eager attention does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy
import pytest
import torch

from deployments.hf_transformers import attention
from deployments.hf_transformers.attention import choose_attention
from tests.support.transformers_models import configuration, embed, loaded
from truthgpt_serve.device import DTYPES
from truthgpt_serve.errors import ConfigError


@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_attention_that_works_is_taken(name: str, encoder: Path) -> None:
    expected, _ = embed(configuration(encoder, "embedding"))
    cfg = configuration(encoder, "embedding", sections={"model_optim": {"attention": name}})
    found, engine = embed(cfg)
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


def test_rounding_is_told_from_a_difference() -> None:
    values = torch.tensor([1.0, -4.0])
    assert not attention.differ(values + 0.003, values, torch.float32)
    assert attention.differ(values + 0.01, values, torch.float32)
    assert not attention.differ(values + 0.1, values, torch.bfloat16)
    assert attention.differ(values * torch.nan, values, torch.bfloat16)
    assert attention.differ(values[:1], values, torch.float32)
    assert {getattr(torch, name) for name in DTYPES} == set(attention.TOLERANCES)
