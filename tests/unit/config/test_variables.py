"""Variables of the environment in configurations, and words that YAML reads otherwise."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.configs import SECRET, faults, read, write
from truthgpt_serve.config import (
    load_model_args,
    load_model_config,
    load_model_cors,
    load_router_args,
    load_router_config,
)
from truthgpt_serve.config.variables import Expanded, VariableError, expand
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.validate import validate_file


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"MODEL_DIR": "/models", "EMPTY": "", "LENGTH": "12", "SECRET": SECRET, "ON": "true"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOT_SET", raising=False)


# -- one text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("", ""),
        ("${MODEL_DIR}/story", "/models/story"),
        ("${MODEL_DIR}${LENGTH}", "/models12"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${NOT_SET:-}", ""),
        ("${NOT_SET:-a b:-c}", "a b:-c"),
        ("${MODEL_DIR:-x}", "/models"),
        ("$MODEL_DIR $5 $$ a$", "$MODEL_DIR $5 $$ a$"),
        ("$${MODEL_DIR}", "${MODEL_DIR}"),
        ("$$${MODEL_DIR}", "$${MODEL_DIR}"),
        ("}${LENGTH}{", "}12{"),
    ],
)
def test_texts(text: str, value: str) -> None:
    assert expand(text) == value


def test_what_a_variable_holds_is_not_looked_at_again() -> None:
    assert expand("${A}", {"A": "${B} $${B}", "B": "b"}) == "${B} $${B}"


@pytest.mark.parametrize(
    "text", ["${}", "${", "${A", "${1A}", "${A-B}", "${A:?x}", "${A:-${B}}", "${ A }", "${A}${"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(VariableError, match="begins no variable") as caught:
        expand(text, {"A": "a", "B": "b"})
    assert "$${" in caught.value.fix


# -- files


def test_a_models_file(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "run_name: ${NOT_SET:-night}\n"
        "seed: ${LENGTH}\n"
        "model: {family: echo, name_or_path: '${MODEL_DIR}/story', revision: '${LENGTH}'}\n"
        "training: {learning_rate: '${NOT_SET:-5e-5}'}\n"
        "hardware: {gpus: '${NOT_SET:-0.25}', device: '${NOT_SET:-auto}'}\n"
        "model_optim: {compile: '${ON}'}\n"
        "serving:\n"
        "  aliases: ['org/${NOT_SET:-m}:8b']\n"
        "  engine: {num_tokens: '${LENGTH}', text: '${MODEL_DIR}', other: 'a ${LENGTH}'}\n",
    )
    assert (config.run_name, config.seed) == ("night", 12)
    assert config.model.name_or_path == "/models/story"
    assert config.model.revision == "12"
    assert config.training.learning_rate == 5e-5
    assert (config.hardware.gpus, config.hardware.device) == (0.25, "auto")
    assert config.model_optim.compile is True
    assert config.serving.aliases == ["org/m:8b"]
    cfg = config.to_cfg()
    assert cfg["serving"]["engine"] == {"num_tokens": 12, "text": "/models", "other": "a 12"}
    assert not find_marked(cfg)
    assert json.loads(json.dumps(cfg)) == cfg


def find_marked(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in find_marked(item)]
    if isinstance(value, list):
        return [found for item in value for found in find_marked(item)]
    return [value] if isinstance(value, Expanded) else []


def test_a_text_stays_what_it_is_on_every_way(tmp_path: Path) -> None:
    """A configuration passes on as a mapping, and what a variable held is not read again."""
    cfg = read(tmp_path, "run_name: $${MODEL_DIR}\nmodel: {family: echo}\n").to_cfg()
    assert cfg["run_name"] == "${MODEL_DIR}"
    assert load_model_config(cfg).run_name == "${MODEL_DIR}"
    router = load_router_args({"request_timeout_s": "${LENGTH}"}, place="args")
    assert router.request_timeout_s == 12
    assert load_router_config(router.model_dump()).request_timeout_s == 12


def test_what_is_not_set_is_named_with_its_place(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        "model:\n  family: echo\n  name_or_path: ${NOT_SET}/story\nserving:\n  aliases:\n"
        "  - a\n  - ${ALSO_NOT}\ntraining: {epochs: 0}\n",
    )
    assert found == [
        "m.yaml:3: model.name_or_path: the environment variable NOT_SET is not set (set it where "
        "the service starts, or write ${NOT_SET:-default})",
        "m.yaml:7: serving.aliases[1]: the environment variable ALSO_NOT is not set (set it where "
        "the service starts, or write ${ALSO_NOT:-default})",
        "m.yaml:8: training.epochs: must be at least 1, not 0",
    ]


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    monkeypatch.setenv("SECRET", str(folder))
    write(folder, "model: {family: echo}\nseed: -1\n")
    for name, shown in (("m.yaml", "${SECRET}/m.yaml:2: seed"), ("no.yaml", "${SECRET}/no.yaml")):
        with pytest.raises(ConfigError) as caught:
            load_model_args({"config": f"${{SECRET}}/{name}"}, place="args")
        assert shown in str(caught.value)
        assert SECRET not in str(caught.value)


def test_marked_texts_can_be_copied() -> None:
    text = expand("a ${SECRET}")
    assert isinstance(text, Expanded)
    again = copy.deepcopy({"x": [text]})["x"][0]
    assert (again, again.written) == (f"a {SECRET}", "a ${SECRET}")


# -- arguments in a Serve file


def test_arguments_of_applications(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "run_name: ${NOT_SET:-night}\nmodel: {family: echo}\n")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    args: dict[str, Any] = {"config": "${FOLDER}/m.yaml"}
    assert load_model_args(args, place="args").run_name == "night"
    inline = {"run_name": "${LENGTH}", "seed": "${LENGTH}", "model": {"family": "echo"}}
    config = load_model_args(inline, place="args")
    assert (config.run_name, config.seed) == ("12", 12)
    origins = {**args, "cors": {"allow_origins": ["https://${NOT_SET:-a.example}"]}}
    assert load_model_cors(origins, place="args").allow_origins == ["https://a.example"]
    for wrong in ({"config": "${NOT_SET}"}, {"model": {"family": "${NOT_SET}"}}):
        with pytest.raises(ConfigError, match=r"^args: .*variable NOT_SET is not set"):
            load_model_args(wrong, place="args")
    with pytest.raises(ConfigError, match=r"^args: cors.allow_origins\[0\]: .*NOT_SET"):
        load_model_cors({**args, "cors": {"allow_origins": ["${NOT_SET}"]}}, place="args")
    with pytest.raises(ConfigError, match=r"router: max_body_bytes: .*NOT_SET is not set"):
        load_router_args({"max_body_bytes": "${NOT_SET}"}, place="router")


def test_validate_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "model: {family: echo}\n")
    monkeypatch.setenv("FOLDER", str(tmp_path))
    text = (
        "applications:\n"
        "- name: m\n"
        "  route_prefix: /models/m\n"
        "  import_path: truthgpt_serve.app:model\n"
        "  args: {config: '${FOLDER}/m.yaml'}\n"
        "- name: router\n"
        "  route_prefix: /\n"
        "  import_path: truthgpt_serve.app:router\n"
        "  args: {request_timeout_s: '${NOT_SET:-60}', max_body_bytes: '${NOT_SET}'}\n"
    )
    serve = tmp_path / "serve.yaml"
    serve.write_text(text)
    [fault] = validate_file(serve).faults
    assert fault.place.endswith("serve.yaml:9: applications[1].args.max_body_bytes")
    assert "NOT_SET is not set" in fault.message
    monkeypatch.delenv("FOLDER")
    found = {fault.place.rpartition(" ")[2] for fault in validate_file(serve).faults}
    assert found == {"applications[0].args.config", "applications[1].args.max_body_bytes"}


# -- words that YAML reads otherwise


def test_a_serve_file_too(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("http_options: {port: 010}\napplications: []\n")
    [fault] = validate_file(path).faults
    assert fault.place.endswith("serve.yaml:1: http_options.port")
    assert "is the number 8" in fault.message
