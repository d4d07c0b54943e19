"""`model.adapter`, checked by its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.adapter_files import base_of, find_adapter_problem
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def write_adapter(folder: Path, base: Path, *, width: int) -> Path:
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    settings |= {"base_model_name_or_path": str(base), "lora_dropout": 0.0, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    shapes = {"A": (4, width), "B": (width, 4)}
    tensors = {name.format(part): np.zeros(shape, "f4") for part, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def width_of(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["hidden_size"])


def faults(model: Path, adapter: Path | str, /, *, training: bool = False, **more: Any) -> str:
    sections = {"model": {"name_or_path": str(model), "adapter": str(adapter)}, **more}
    family = sections["model"].setdefault("family", more.pop("family", "hf-transformers"))
    sections.pop("family", None)
    assert family
    config = load_model_config(sections, place="m.yaml")
    return "\n".join(str(fault) for fault in check_model(config, for_training=training))


def test_a_fitting_adapter_is_served_and_trained(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model, width=width_of(model))
    assert base_of(adapter) == str(model)
    assert faults(model, adapter) == ""
    assert faults(model, adapter, training=True, family="vllm") == ""


def test_one_of_another_base_names_both(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", Path("/other/model"), width=width_of(model) + 8)
    found = faults(model, adapter)
    assert "m.yaml" in found
    assert f"{adapter}, which was trained for /other/model: " in found
    assert f"of the base model {model}" in found


def test_what_is_no_adapter_is_named(model: Path, tmp_path: Path) -> None:
    assert "does not exist" in faults(model, "./nowhere")
    assert "has no adapter_config.json" in faults(model, model)
    problem = find_adapter_problem(tmp_path, None, is_image=True)
    assert problem is not None
    assert "has no weights" in problem[0]


def test_families_that_add_none_say_what_to_do(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model, width=width_of(model))
    found = faults(model, adapter, family="vllm")
    assert "family 'vllm' adds no adapter to the weights" in found
    assert "serving.adapters" in found
    assert "has no LoRA adapters" in faults(model, adapter, family="echo")
    adapters = {"adapters": [{"name": "tales", "path": str(adapter)}]}
    assert "write the one to serve as model.adapter" in faults(model, adapter, serving=adapters)


def test_settings_other_than_its_own_are_refused(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", model, width=width_of(model))
    same: list[dict[str, Any]] = [{"r": 4, "dora": False}, {"target_modules": ["q_proj"]}]
    for lora in (*same, {"r": 8, "stack": True}):
        optim = {"lora": {"enabled": True, **lora}}
        assert faults(model, adapter, training=True, model_optim=optim) == ""
    others: list[dict[str, Any]] = [{"r": 8}, {"dora": True}, {"target_modules": ["v_proj"]}]
    for lora in others:
        optim = {"lora": {"enabled": True, **lora}}
        found = faults(model, adapter, training=True, model_optim=optim)
        assert f"model_optim.lora.{next(iter(lora))}" in found
        assert "or write stack: true" in found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"model": {"adapter": "a"}, "lora": {"enabled": False}},
            "false contradicts model.adapter",
        ),
        (
            {"model": {}, "lora": {"enabled": True, "stack": True}},
            "no effect without model.adapter",
        ),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], message: str) -> None:
    sections = {"model": given["model"], "model_optim": {"lora": given["lora"]}}
    with pytest.raises(ConfigError, match=message):
        load_model_config(sections, place="m.yaml")
