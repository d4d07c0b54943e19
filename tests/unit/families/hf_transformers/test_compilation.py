"""Compiled models give what the plain ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from deployments.hf_transformers.compilation import compile_model
from tests.support.transformers_models import configuration, embed
from truthgpt_serve.errors import ConfigError

COMPILE_S = 400


@pytest.mark.long("compiles a model")
@pytest.mark.timeout(COMPILE_S)
def test_a_compiled_model_gives_the_same(encoder: Path) -> None:
    expected, _ = embed(configuration(encoder, "embedding"))
    sections = {"model_optim": {"compile": True}}
    cfg = configuration(encoder, "embedding", sections=sections, compile_mode="default")
    found, _ = embed(cfg)
    numpy.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_compiler_that_fails_is_named() -> None:
    class Broken:
        def compile(self, **_options: Any) -> None:
            raise RuntimeError("no C++ compiler\nand a long story")

    with pytest.raises(
        ConfigError, match=r"does not work here: RuntimeError: no C\+\+ compiler \(inst"
    ):
        compile_model(Broken(), "default", [])
