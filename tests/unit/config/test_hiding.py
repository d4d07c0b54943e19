"""What a variable holds is in no message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.configs import SECRET, faults, read, write
from truthgpt_serve.cluster.start_errors import StartError, cause_first
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.config.variables import expand
from truthgpt_serve.validate import validate_file


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "seed: ${SECRET}\nmodel: {family: echo}\n",
        "task: ${SECRET}\nmodel: {family: echo}\n",
        "model: {family: echo, import: '${SECRET}'}\n",
        "model: ${SECRET}\n",
        "model: {family: echo}\nserving: {aliases: ['/${SECRET}']}\n",
        "model: {family: echo}\nserving: {adapters: ['${SECRET}']}\n",
        "model: {family: echo}\ntraining: {learning_rate: 'x${SECRET}'}\n",
    ],
)
def test_faults_show_the_variable_and_not_what_it_holds(tmp_path: Path, text: str) -> None:
    assert any("${SECRET}" in fault for fault in faults(tmp_path, text))


@pytest.mark.parametrize(
    "engine", ["num_tokens: 'x${SECRET}'", "num_tokens: '${SECRET}'", "what: '${SECRET}'"]
)
def test_nor_do_faults_of_a_familys_own_keys(tmp_path: Path, engine: str) -> None:
    path = write(tmp_path, f"model: {{family: echo}}\nserving: {{engine: {{{engine}}}}}\n")
    found = [str(fault) for fault in validate_file(path).faults]
    assert found
    assert SECRET not in "".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "model: {family: '${SECRET}'}",
        "model: {family: vllm, name_or_path: './${SECRET}'}",
        "model: {family: remote, name_or_path: '${SECRET}'}",
        "model: {family: remote, name_or_path: 'http://h/../${SECRET}'}",
        "model: {family: remote, name_or_path: 'http://h/${SECRET}/completions'}",
        "model: {family: custom, import: '${SECRET}'}",
        "model: {family: remote, name_or_path: 'http://h'}\n"
        "serving: {engine: {paths: ['${SECRET}']}}",
        "task: image-generation\nmodel: {name_or_path: x}\n"
        "model_optim: {quantization: '${SECRET}', attention: '${SECRET}'}",
        "task: image-generation\nmodel: {name_or_path: x}\n"
        "serving: {engine: {schedulers: ['${SECRET}'], vae: '/${SECRET}'}}",
        "model: {name_or_path: x}\nmodel_optim: {quantization: '${SECRET}'}",
        "model: {name_or_path: x}\nserving: {engine: {enforce_eager: '${SECRET}', "
        "max_model_len: '${SECRET}', max_num_seqs: 'x${SECRET}'}}",
        "model: {family: echo}\nserving: {aliases: ['${SECRET}', '${SECRET}']}",
        "model: {name_or_path: x}\nserving: {adapters: [{name: a, path: './${SECRET}'}]}",
    ],
)
@pytest.mark.parametrize("value", [SECRET, "4711991", f"{SECRET}{'/x' * 40}", "A 'quoted' one"])
def test_nor_do_checks_of_families(
    tmp_path: Path, text: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", value)
    found = "\n".join(str(fault) for fault in validate_file(write(tmp_path, text)).faults)
    assert "${SECRET}" in found
    assert value[:12].lower() not in found.lower()
    assert repr(value)[1:13] not in found


def test_short_values_are_hidden_alone_and_not_within_other_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUS", "4")
    monkeypatch.setenv("WAY", "mode")
    text = "model: {family: remote, name_or_path: '${WAY}'}\nhardware: {gpus: '${GPUS}'}\n"
    address, gpus = validate_file(write(tmp_path, text)).faults
    assert address.message == "must be an http or https URL, not '${WAY}'"
    assert gpus.message == "${GPUS} would be reserved for nothing: the remote server computes"
    hidden = HiddenValues()
    hidden.add(expand("${GPUS}"))
    hidden.add(expand("${WAY}"))
    assert hidden.hide("model 42 at 0.4 or 4.5, mode 4, ${GPUS}") == (
        "model 42 at 0.4 or 4.5, ${WAY} ${GPUS}, ${GPUS}"
    )


def test_causes_of_failed_starts(tmp_path: Path) -> None:
    text = "model: {family: echo, name_or_path: '${SECRET}/m'}\n"
    written = read(tmp_path, text).source.hidden.written
    hide = HiddenValues(json.loads(json.dumps(written))).hide
    with pytest.raises(StartError) as caught, cause_first("m", hide):
        raise OSError(f"{SECRET}/m is not a local folder")
    assert str(caught.value.__cause__) == "OSError: ${SECRET}/m is not a local folder"
