"""The configuration that `truthgpt init` writes for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from truthgpt_serve.cli._init.model_file import NewModel, render
from truthgpt_serve.registry import MODEL_REGISTRY


@pytest.mark.parametrize("family", [*MODEL_REGISTRY, "mine"])
@pytest.mark.parametrize("engine", [{}, {"pipeline_task": "text-classification"}])
def test_every_family_has_a_file_that_can_be_read(family: str, engine: dict[str, Any]) -> None:
    adapters = (("a: b", "./x #y"),)
    model = NewModel("m", "custom", family, "007", 0.5, engine, adapters, "a\nreason: # odd")
    found = yaml.safe_load(render(model, Path("../schema.json")))
    assert found["model"] == {"family": family, "name_or_path": "007"}
    assert found["serving"]["adapters"] == [{"name": "a: b", "path": "./x #y"}]
    assert found["serving"].get("engine", {}) == engine
    assert found["hardware"]["gpus"] == (0 if family == "remote" else 0.5)
