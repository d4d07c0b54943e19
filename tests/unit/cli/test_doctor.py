"""The command `truthgpt doctor` on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from truthgpt_serve.cli import main
from truthgpt_serve.doctor import diagnosis

ECHO = "model: {family: echo}\nhardware: {cpus: 0.1, gpus: 0}\n"
TENSOR = "task: tensor\nmodel: {{name_or_path: {path}}}\nhardware: {{gpus: 0}}\n{more}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "echo.yaml").write_text(ECHO)
    (tmp_path / "bad.yaml").write_text(ECHO.replace("0.1", "4000"))
    return tmp_path


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_a_file_that_can_be_served_gives_0(folder: Path) -> None:
    result = doctor("echo.yaml")
    assert result.exit_code == 0, result.output
    assert "  yes  echo.yaml: text-generation by echo" in result.stdout.replace("yes ", "yes  ")
    assert "fault" not in result.stderr


def test_what_a_file_needs_and_is_not_here_gives_2_with_the_faults(folder: Path) -> None:
    result = doctor("echo.yaml", "bad.yaml")
    assert result.exit_code == 2
    [fault] = [line for line in result.stderr.splitlines() if line.startswith("fault: ")]
    assert fault.startswith("fault: bad.yaml: bad.yaml:2: hardware.cpus: 4000 is more than")
    absent = doctor("absent.yaml")
    assert absent.exit_code == 2
    assert "no such file" in absent.stderr


def test_programs_get_json(folder: Path) -> None:
    result = doctor("bad.yaml", "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["works"] is False
    assert len(found["faults"]) == 1
    groups = {group["title"]: group for group in found["groups"]}
    assert [*groups][:4] == ["base", "machine", "packages", "service"]
    for group in found["groups"]:
        for probe in group["probes"]:
            assert probe.keys() == {"name", "works", "detail", "fix"}
    assert groups["bad.yaml"]["needed"] is True
    assert groups["packages"]["needed"] is False


def test_a_file_is_no_reason_to_try_everything(folder: Path) -> None:
    result = doctor("echo.yaml")
    assert "family " not in result.stdout
    assert "trying Python, hardware" in result.stderr
    assert "trying the family" not in result.stderr  # echo has nothing to try


def test_without_files_only_the_base_can_be_at_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MODEL_REGISTRY", {})  # their own tests are beside this
    monkeypatch.setenv("PATH", "")
    found = diagnosis.diagnose()
    assert found.faults == []
    assert any(not probe.works for group in found.groups for probe in group.probes)


def test_a_model_asks_its_family(folder: Path) -> None:
    from deployments.onnx.tiny_model import make_tiny_vision

    path = make_tiny_vision(folder / "m.onnx")
    (folder / "good.yaml").write_text(TENSOR.format(path=path, more=""))
    result = doctor("good.yaml")
    assert result.exit_code == 0, result.output
    assert "a session ran on cpu" in result.stdout
    assert "trying the family onnxruntime: good.yaml" in result.stderr
    assert "tried the family onnxruntime in " in result.stderr
    assert f"{path} is here" in result.stdout


@pytest.mark.long("imports engines in a process of its own")
def test_a_model_that_is_nowhere_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    text = "task: embedding\nmodel: {family: hf-transformers, name_or_path: org/model}\n"
    (folder / "hub.yaml").write_text(f"{text}hardware: {{gpus: 0}}\n")
    result = doctor("hub.yaml")
    assert result.exit_code == 2
    assert "org/model is neither here nor in the cache" in result.stderr
    snapshot = folder / "hub" / "hub" / "models--org--model" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    result = doctor("hub.yaml")
    assert result.exit_code == 0, result.output
    assert "org/model is in the cache" in result.stdout
