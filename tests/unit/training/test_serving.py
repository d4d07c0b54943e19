"""How a result is served, as the end of a run and `truthgpt serve-line` say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.runner import build_model
from truthgpt_serve.training.serving import Served, model_name, serving_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    folder = make_tiny_adapter(tmp_path / "adapter")
    change(folder, base_model_name_or_path=str(base))
    return folder


def change(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def served(folder: Path, name: str | None = None, **given: Any) -> Served:
    config = load_model_config({"run_name": "tales", **given}, place="test")
    return serving_of({"config": config.to_cfg()}, folder, name)


def check(found: Served) -> dict[str, Any]:
    """Returns the keys that are printed, which the families' checks find sound."""
    (entry,) = yaml.safe_load("\n".join(found.lines()))
    assert entry["route_prefix"] == f"/models/{entry['name']}"
    assert check_model(load_model_config(entry["args"], place="test")) == []
    args: dict[str, Any] = entry["args"]
    return args


def test_a_whole_model_is_an_application(base: Path) -> None:
    found = served(base, model={"name_or_path": "org/model", "revision": "main"})
    model = {"family": "vllm", "name_or_path": str(base)}
    assert check(found) == {"task": "text-generation", "model": model}
    assert (found.application_name, found.adapter, found.adapter_lines()) == ("tales", None, [])


def test_an_adapter_stands_beside_its_model(base: Path, adapter: Path) -> None:
    found = served(adapter, "x", model={"name_or_path": str(base)})
    entry = {"name": "x", "path": str(adapter)}
    assert check(found)["serving"] == {"adapters": [entry]}
    assert found.application_name == "x-base"
    assert yaml.safe_load("\n".join(found.adapter_lines())) == {"serving": {"adapters": [entry]}}


def test_what_vllm_does_not_take_is_served_by_transformers(base: Path, adapter: Path) -> None:
    shape = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), shape)
    model.save_pretrained(str(adapter))
    own = {"engine": {"max_num_seqs": 2}, "max_ongoing_requests": 3}
    args = check(served(adapter, model={"name_or_path": str(base)}, serving=own))
    assert args["model"]["family"] == "hf-transformers"
    assert args["model"]["adapter"] == [str(adapter)]
    assert args["serving"] == {"max_ongoing_requests": 3}
    with build_model("hf-transformers", {**args, "hardware": {"gpus": 0}}) as built:
        assert "text" in built.infer({"text": "Ada", "max_new_tokens": 2})


def test_settings_stay_but_secrets_and_what_is_another_models(base: Path) -> None:
    record = {
        "config": load_model_config(
            {
                "model": {"name_or_path": "org/model", "family": "remote"},
                "model_optim": {"dtype": "float32"},
                "serving": {
                    "engine": {"model": "x", "api_key": "(hidden)", "at": "${NAME}"},
                    "aliases": ["y"],
                    "max_ongoing_requests": 3,
                },
            },
            place="test",
        ).to_cfg()
    }
    args = serving_of(record, base).args
    assert args["serving"] == {
        "max_ongoing_requests": 3,
        "engine": {"model": "x", "at": "${NAME}"},
    }
    assert args["model_optim"] == {"dtype": "float32"}


def test_what_is_learned_beside_an_image_model_goes_to_its_engine(tmp_path: Path) -> None:
    given: dict[str, Any] = {"task": "image-generation", "model": {"name_or_path": "org/model"}}
    args = served(tmp_path, **given, training={"component": "controlnet"}).args
    assert args["serving"] == {"engine": {"controlnet": str(tmp_path)}}
    assert args["model"] == {"family": "hf-diffusers", "name_or_path": "org/model"}
    word = {"placeholder": "<toy>", "initializer": "toy"}
    training = {"component": "textual_inversion", "textual_inversion": word}
    args = served(tmp_path, **given, training=training).args
    assert args["serving"] == {"engine": {"textual_inversion": [str(tmp_path)]}}


def test_a_run_named_by_a_variable_is_served_by_the_name_of_its_folder(tmp_path: Path) -> None:
    config = load_model_config({"run_name": "tales"}, place="test").to_cfg()
    record = {"config": {**config, "run_name": "${USER}-tales"}}  # as `run.json` shows it
    assert serving_of(record, tmp_path / "runs" / "ada-tales" / "model").name == "ada-tales"


@pytest.mark.parametrize(
    ("text", "name"), [("a b/ü c", "a-b-c"), ("v1", "v1-model"), ("", "model")]
)
def test_a_name_is_made_of_any_text(text: str, name: str) -> None:
    assert model_name(text) == name
