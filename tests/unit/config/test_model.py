"""Configurations: defaults, what is accepted, where paths lead, generated references."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml
from click.testing import CliRunner

from tests.support.configs import make_service
from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.cli import main
from truthgpt_serve.config import (
    ModelConfig,
    RouterConfig,
    load_model_args,
    load_model_config,
)
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.validate.reference import SCHEMAS

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_service(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TRUTHGPT_CONFIG_DIR", raising=False)
    return tmp_path


@pytest.mark.parametrize("name", ["..", ".", "/tmp/tales", "a/../../b", "a\0b"])
def test_a_run_name_that_is_no_folder_below_runs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run_name: .*names no folder below runs"):
        load_model_config({"run_name": name})


@pytest.mark.parametrize("name", ["tales", "org/tales", "модель", "tales v1..2"])
def test_other_run_names_are_taken(name: str) -> None:
    assert load_model_config({"run_name": name}).run_name == name


def test_defaults_are_the_specified_ones() -> None:
    cfg = load_model_config({}).to_cfg()
    assert list(cfg) == [
        "run_name", "seed", "task", "model", "training", "model_optim", "hardware", "data",
        "serving",
    ]  # fmt: skip
    assert (cfg["run_name"], cfg["seed"], cfg["task"]) == ("demo", 42, "text-generation")
    assert cfg["model"] == {
        "adapter": [],
        "family": "vllm", "name_or_path": None, "revision": None, "import": None,
    }  # fmt: skip
    assert cfg["training"].items() >= {
        "epochs": 3, "train_batch_size": 8, "eval_batch_size": 8, "grad_accum_steps": 2,
        "learning_rate": 5.0e-5, "scheduler": "cosine", "warmup_ratio": 0.06,
        "mixed_precision": "bf16", "max_grad_norm": 1.0, "early_stopping_patience": 2,
        "method": "sft", "max_steps": None, "tracker": "tensorboard", "reward": None,
        "optimizer": "adamw",
    }.items()  # fmt: skip
    assert cfg["model_optim"] == {
        "gradient_checkpointing": True,
        "lora": {
            "enabled": False, "r": 16, "alpha": 32, "dropout": 0.05, "target_modules": None,
            "modules_to_save": None, "dora": False, "rslora": False, "stack": False,
        },
        "dtype": "auto", "quantization": None, "compile": False, "attention": "auto",
    }  # fmt: skip
    assert cfg["hardware"]["gpus"] == cfg["hardware"]["device"] == "auto"
    assert cfg["serving"]["engine"] == {}
    assert cfg["serving"]["adapters"] == []


def test_cfg_is_plain_and_round_trips() -> None:
    config = load_model_config({"model": {"family": "echo"}, "hardware": {"gpus": 0.25}})
    cfg = config.to_cfg()
    assert json.loads(json.dumps(cfg)) == cfg
    assert load_model_config(cfg).to_cfg() == cfg


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("text-generation", "vllm"),
        ("image-generation", "hf-diffusers"),
        ("embedding", "vllm"),
        ("tensor", "onnxruntime"),
        ("custom", "custom"),
    ],
)
def test_family_follows_the_task(task: str, family: str) -> None:
    assert load_model_config({"task": task}).family == family
    assert load_model_config({"task": task}).to_cfg()["model"]["family"] == family


@pytest.mark.parametrize(
    ("written", "read"),
    [("auto", "auto"), ("0", 0), ("0.25", 0.25), ("1", 1), ("1.0", 1), ("4", 4), ("25e-2", 0.25)],
)
def test_gpus(written: str, read: object, folder: Path) -> None:
    path = folder / "x.yaml"
    path.write_text(f"hardware: {{gpus: {written}}}\n", encoding="utf-8")
    gpus = load_model_config(path).hardware.gpus
    assert gpus == read
    assert type(gpus) is type(read)


@pytest.mark.parametrize("written", ["5e-5", "5E-5", "0.5e-4", "5.0e-5", "0.00005", "+5e-5"])
def test_scientific_numbers(written: str, folder: Path) -> None:
    text = f"training: {{learning_rate: {written}}}\n"
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    assert load_model_config("x.yaml").training.learning_rate == pytest.approx(5e-5)
    # Ray reads a Serve file by YAML 1.1, where some of these are text.
    as_ray = yaml.safe_load(text)
    assert load_model_config(as_ray).training.learning_rate == pytest.approx(5e-5)


def test_precision_no_survives_yaml() -> None:
    read = yaml.safe_load("training: {mixed_precision: no}")
    assert load_model_config(read).training.mixed_precision == "no"


def test_every_fault_is_raised_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config(
            {"seed": -1, "serving": {"autoscaling": {"min_replicas": 2}, "num_replica": 1}},
            place="application demo",
        )
    assert [str(fault) for fault in caught.value.faults] == [
        "application demo: seed: must be at least 0, not -1",
        "application demo: serving.autoscaling.min_replicas: 2 is more than max_replicas, which "
        "is 1 (lower it, or raise max_replicas)",
        "application demo: serving.num_replica: unknown field `num_replica` "
        "(did you mean serving.num_replicas?)",
    ]


def test_a_faulty_value_accuses_no_other() -> None:
    bad = {"serving": {"autoscaling": {"min_replicas": 5, "max_replicas": "many"}}}
    with pytest.raises(ConfigError) as caught:
        load_model_config(bad)
    assert [fault.place for fault in caught.value.faults] == [
        "configuration: serving.autoscaling.max_replicas"
    ]


def test_weights_are_found_in_three_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("here", "files/beside", "other/parent"):
        (folder / place).mkdir(parents=True)
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(folder / "other" / "configs"))
    for name, found in (
        ("here", "here"),
        ("./here", "here"),
        ("beside", "files/beside"),
        ("./parent", "other/parent"),
    ):
        path = folder / "files" / "x.yaml"
        text = (
            f"model: {{name_or_path: {name}}}\nserving: {{adapters: [{{name: a, path: {name}}}]}}"
        )
        path.write_text(text, encoding="utf-8")
        config = load_model_config(path)
        assert config.model.name_or_path == str(folder / found)
        assert config.serving.adapters[0].path == str(folder / found)


def test_hub_names_stay(folder: Path) -> None:
    config = load_model_config({"model": {"name_or_path": "org/model"}})
    assert config.model.name_or_path == "org/model"


def test_arguments_of_an_application(folder: Path) -> None:
    by_file = load_model_args({"config": "models/echo.yaml"}, place="application echo")
    inline = load_model_args({"model": {"family": "echo"}}, place="application echo")
    assert by_file.to_cfg() == inline.to_cfg()
    with pytest.raises(ConfigError, match=r"application echo: config: is given together with seed"):
        load_model_args({"config": "models/echo.yaml", "seed": 1}, place="application echo")
    with pytest.raises(ConfigError, match="application echo: names no configuration"):
        load_model_args({}, place="application echo")


def test_custom_becomes_the_registered_name(folder: Path) -> None:
    config = load_model_config({"task": "custom", "model": {"import": "registers_one"}})
    assert resolve_family(config).name == "config-test-one"
    assert config.to_cfg()["model"]["family"] == "config-test-one"
    assert check_model(config, place="x") == []


def test_a_registered_name_needs_its_import(folder: Path) -> None:
    named = {"task": "custom", "model": {"import": "registers_two", "family": "config-test-b"}}
    assert resolve_family(load_model_config(named)).name == "config-test-b"


def test_faults_of_checks_name_the_given_place() -> None:
    config = load_model_config({"model": {"family": "no-such-family"}})
    (fault,) = check_model(config, place="application demo")
    assert fault.place == "application demo: model.family"


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("configs/schema.json", ["schema"]),
        ("configs/serve.schema.json", ["schema", "serve"]),
        ("docs/configuration.md", ["schema", "--markdown"]),
    ],
)
def test_generated_files_are_current(file: str, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (ROOT / file).read_text(encoding="utf-8") == result.stdout, (
        f"run: truthgpt {' '.join(arguments)} > {file}"
    )


def test_schemas_accept_what_is_shipped_and_refuse_what_is_wrong() -> None:
    model, serve, router = (SCHEMAS[name]() for name in ("model", "serve", "router"))
    for schema in (model, serve, router):
        jsonschema.Draft202012Validator.check_schema(schema)
    for path in (ROOT / "configs" / "models").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), model)
    shipped = yaml.safe_load((ROOT / "configs" / "serve.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(shipped, serve)
    wrong: list[dict[str, Any]] = [
        {"servings": {}},
        {"hardware": {"gpus": 1.5}},
        {"task": "text"},
    ]
    for bad in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, model)
    shipped["applications"][0]["args"]["modle"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(shipped, serve)


@pytest.mark.parametrize("model", [ModelConfig, RouterConfig], ids=["model", "router"])
def test_every_key_is_described(model: type[ModelConfig] | type[RouterConfig]) -> None:
    schema = model.model_json_schema()
    parts: list[dict[str, Any]] = [schema, *schema.get("$defs", {}).values()]
    missing = [
        f"{part.get('title')}.{name}"
        for part in parts
        for name, value in part.get("properties", {}).items()
        if "$ref" not in value and not value.get("description")
    ]
    assert missing == []
