"""Compiled models and lower precision give what the plain ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from deployments.hf_transformers import acceleration
from deployments.hf_transformers.acceleration import compile_model
from tests.support.tiny_transformers.models import make_tiny_encoder
from tests.support.transformers_models import configuration, loaded
from truthgpt_serve.device import DTYPES
from truthgpt_serve.errors import ConfigError

COMPILE_S = 400


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def vectors(cfg: dict[str, Any]) -> tuple[Any, Any]:
    texts = [{"text": "the cat"}, {"text": "a small red dog runs"}]
    with loaded(cfg) as model:
        answers = model.infer_batch(texts)
        return numpy.stack([answer["embedding"] for answer in answers]), model._engine


@pytest.mark.long("compiles a model")
@pytest.mark.timeout(COMPILE_S)
def test_a_compiled_model_gives_the_same(encoder: Path) -> None:
    expected, _ = vectors(configuration(encoder, "embedding"))
    sections = {"model_optim": {"compile": True}}
    cfg = configuration(encoder, "embedding", sections=sections, compile_mode="default")
    found, _ = vectors(cfg)
    numpy.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_compiler_that_fails_is_named() -> None:
    class Broken:
        def compile(self, **_options: Any) -> None:
            raise RuntimeError("no C++ compiler\nand a long story")

    with pytest.raises(
        ConfigError, match=r"does not work here: RuntimeError: no C\+\+ compiler \(inst"
    ):
        compile_model(Broken(), "default", [])


def test_rounding_is_told_from_a_difference() -> None:
    values = torch.tensor([1.0, -4.0])
    assert not acceleration.differ(values + 0.003, values, torch.float32)
    assert acceleration.differ(values + 0.01, values, torch.float32)
    assert not acceleration.differ(values + 0.1, values, torch.bfloat16)
    assert acceleration.differ(values * torch.nan, values, torch.bfloat16)
    assert acceleration.differ(values[:1], values, torch.float32)
    assert {getattr(torch, name) for name in DTYPES} == set(acceleration.TOLERANCES)
