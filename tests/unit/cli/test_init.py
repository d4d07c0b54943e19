"""`truthgpt init`: what a model is guessed to be, its file, and its entry in the Serve file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.cli_service import Answer, environment, serve
from tests.support.terminal import on_terminal
from truthgpt_serve.cli import main
from truthgpt_serve.cli._init.guess import GuessError, guess
from truthgpt_serve.cli._init.model_file import NewModel
from truthgpt_serve.cli._init.write import Plan
from truthgpt_serve.cli.init import TASKS
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import TASKS as ALL_TASKS
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.validate import validate_file

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"}


@pytest.fixture
def folder(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the configurations that ship."""
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models").symlink_to(root / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, **files: Any) -> str:
    """Makes a folder of a model, with JSON files by their names without the ending."""
    folder.mkdir()
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return str(folder)


def init(*arguments: str) -> Result:
    """In this process: each of its own would import Ray for the check of the files."""
    return CliRunner().invoke(main, ["init", *arguments], env=OFFLINE)


# -- what a model is


@pytest.mark.parametrize(
    ("config", "task", "family", "engine"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, "text-generation", "vllm", {}),
        ({"architectures": ["GPT2LMHeadModel"]}, "text-generation", "vllm", {}),
        (
            {"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}},
            "text-generation", "vllm", {},
        ),
        ({"architectures": ["BertModel"]}, "embedding", "hf-transformers", {}),
        (
            {"architectures": ["WhisperForConditionalGeneration"]}, "custom", "hf-transformers",
            {"pipeline_task": "automatic-speech-recognition"},
        ),
        (
            {"architectures": ["BertForSequenceClassification"]}, "custom", "hf-transformers",
            {"pipeline_task": "text-classification"},
        ),
        ({"architectures": ["SomethingElse"]}, None, None, {}),
        ({}, None, None, {}),
    ],
)  # fmt: skip
def test_a_folder_says_what_it_is(
    config: Any, task: str | None, family: str | None, engine: Any, tmp_path: Path
) -> None:
    found = guess(make(tmp_path / "m", config=config), "m", OFFLINE)
    assert (found.task, found.family, found.engine) == (task, family, engine)
    assert found.name_or_path == str(tmp_path / "m")


def test_other_files_say_it_too(tmp_path: Path) -> None:
    images = guess(make(tmp_path / "a", model_index={"_class_name": "FluxPipeline"}), "a", OFFLINE)
    assert (images.task, images.family) == ("image-generation", "hf-diffusers")
    assert "FluxPipeline" in images.why
    (tmp_path / "x.onnx").touch()
    assert guess(str(tmp_path / "x.onnx"), "x", OFFLINE).family == "onnxruntime"
    assert guess(str(tmp_path), "x", OFFLINE).task == "tensor"
    text = make(tmp_path / "o", config={"architectures": ["LlamaForCausalLM"]})
    (tmp_path / "o" / "model.onnx").touch()
    decoder = guess(text, "o", OFFLINE)
    assert (decoder.task, decoder.family) == ("text-generation", "onnxruntime")
    (tmp_path / "o" / "model.safetensors").touch()
    assert guess(text, "o", OFFLINE).family == "vllm"
    adapter = make(tmp_path / "b", adapter_config={"base_model_name_or_path": "org/base"})
    found = guess(adapter, "b", OFFLINE)
    assert found.name_or_path == "org/base"
    assert found.adapters == (("b-adapter", adapter),)
    remote = guess("https://api.example.com/v1", "theirs", OFFLINE)
    assert (remote.family, remote.engine) == ("remote", {"model": "theirs"})


def test_what_is_no_model_is_told_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    (tmp_path / "m.bin").touch()
    empty, adapter = make(tmp_path / "a"), make(tmp_path / "b", adapter_config={})
    gguf = make(tmp_path / "c")
    (Path(gguf) / "m.gguf").touch()
    for source, text in (
        (str(tmp_path / "m.gguf"), "GGUF"),
        (str(tmp_path / "m.bin"), "is not a model"),
        (empty, "has none of config.json"),
        (adapter, "does not name its model"),
        (gguf, "no config.json"),
        ("./no/such/folder", "is neither a folder or file here"),
        ("~no-such-user-here/x", "is neither a folder or file here"),
    ):
        with pytest.raises(GuessError, match=text):
            guess(source, "m", OFFLINE)


def test_a_name_in_the_hub_is_looked_up_in_the_cache_and_asked(tmp_path: Path) -> None:
    snapshots = tmp_path / "hub" / "models--org--here" / "snapshots"
    snapshots.mkdir(parents=True)
    make(snapshots / "1", config={"architectures": ["LlamaForCausalLM"]})
    cached = {**OFFLINE, "HF_HOME": str(tmp_path)}
    found = guess("org/here", "m", cached)
    assert (found.name_or_path, found.family) == ("org/here", "vllm")
    assert "HF_HUB_OFFLINE" in guess("org/else", "m", cached).why
    answers = {
        "/api/models/org/speech": Answer({"pipeline_tag": "automatic-speech-recognition"}),
        "/api/models/org/draw": Answer({"pipeline_tag": "x", "library_name": "diffusers"}),
        "/api/models/org/plain": Answer({"config": {"architectures": ["LlamaForCausalLM"]}}),
        "/api/models/org/odd": Answer([]),
        "/api/models/org/down": Answer({}, 503),
        "/api/models/org/none": Answer({}, 404),
    }
    with serve(answers) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": "/nowhere", "HF_TOKEN": "hf_secret"}
        assert guess("org/speech", "m", env).engine["pipeline_task"]
        assert guess("org/draw", "m", env).family == "hf-diffusers"
        assert guess("org/plain", "m", env).family == "vllm"
        assert guess("org/odd", "m", env).task is None
        assert "status 503" in guess("org/down", "m", env).why
        with pytest.raises(GuessError, match="no model 'org/none'"):
            guess("org/none", "m", env)
    assert hub.requests[0].headers["authorization"] == "Bearer hf_secret"
    down = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": "/nowhere"}
    assert "does not answer" in guess("org/x", "m", down).why


def test_the_tasks_are_all_there_are() -> None:
    assert set(TASKS) == set(ALL_TASKS)


# -- the command


def test_a_model_is_written_and_added_and_passes_validate(folder: Path) -> None:
    done = init("qwen", "--from", "Qwen/Qwen3-0.6B", "--gpus", "0")
    assert done.exit_code == 0, done.stderr
    assert "wrote configs/models/qwen.yaml: text-generation by vllm" in done.stdout
    assert "added qwen to configs/serve.yaml" in done.stdout
    assert "note: the hub is switched off" in done.stderr
    assert not validate_file("configs/serve.yaml").faults
    config = load_model_config("configs/models/qwen.yaml")
    assert (config.model.name_or_path, config.hardware.gpus) == ("Qwen/Qwen3-0.6B", 0)
    text = (folder / "configs" / "serve.yaml").read_text()
    assert "# only this machine; 0.0.0.0 opens the service to the network" in text
    names = [one["name"] for one in yaml.safe_load(text)["applications"]]
    assert names[-2:] == ["qwen", "router"]
    first = (folder / "configs" / "models" / "qwen.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../schema.json"


@pytest.mark.parametrize(
    ("name", "source", "family"),
    [
        ("tales", "./models/story", "vllm"),
        ("forms", "models/shapes", "hf-diffusers"),
        ("moral", "models/story-moral", "vllm"),
        ("theirs", "https://api.example.com/v1", "remote"),
    ],
)
def test_what_ships_is_recognized(folder: Path, name: str, source: str, family: str) -> None:
    done = init(name, "--from", source)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    config = load_model_config(f"configs/models/{name}.yaml")
    assert config.model.family == family
    assert not validate_file("configs/serve.yaml").faults


def snapshot(folder: Path) -> dict[str, bytes]:
    paths = [path for path in (folder / "configs").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["echo", "--from", "org/x"], 2, "configs/models/echo.yaml exists already"),
        (["models", "--from", "org/x"], 2, "is a path of the router"),
        (["a/b", "--from", "org/x"], 2, "write a-b"),
        (["../x", "--from", "org/x"], 2, "contains a slash"),
        (["x"], 2, "give --from"),
        (["x", "--from", "org/x", "--family", "vlm"], 2, "did you mean 'vllm'"),
        (["x", "--from", "org/x", "--family", "vllm", "--task", "tensor"], 2, "onnxruntime"),
        (["x", "--from", "./nowhere"], 2, "is neither a folder or file here"),
        (["x", "--from", "org/x", "--serve-file", "no.yaml"], 2, "no.yaml cannot be read"),
        # The adapter's name is that of one which is there: only `validate` can see it.
        (["story-moral", "--from", "org/x"], 2, "story-moral"),
    ],
)
def test_a_fault_leaves_everything_as_it_was(
    folder: Path, arguments: list[str], code: int, text: str
) -> None:
    before = snapshot(folder)
    done = init(*arguments)
    assert done.exit_code == code, done.stderr
    assert text in done.stderr
    assert snapshot(folder) == before


@pytest.mark.parametrize("last", ["\r\n", ""])
def test_line_breaks_stay_as_they_are(folder: Path, last: str) -> None:
    path = folder / "configs" / "serve.yaml"
    before = path.read_text().rstrip("\n").replace("\n", "\r\n") + last
    path.write_bytes(before.encode())
    done = init("x", "--from", "org/x")
    assert done.exit_code == 0, done.stderr
    after = path.read_bytes().decode()
    num_new = 5 + (not last)  # the last line gets its end
    assert after.count("\n") == after.count("\r\n") == before.count("\n") + num_new
    entry = after.partition("- name: x\r\n")[2].partition("  - name")[0]
    assert "    route_prefix: /models/x\r\n" in entry
    assert not validate_file("configs/serve.yaml").faults


def test_what_an_editor_saves_meanwhile_is_not_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of the new Serve file takes a second, and then finds a fault."""
    path = folder / "configs" / "serve.yaml"
    plan = Plan(Path("configs"), "x", Path("configs/serve.yaml"))
    saved: list[str] = []

    def validate(file: str) -> Any:
        if Path(file) == Path("configs/serve.yaml") and "name: x" in path.read_text():
            saved.append(path.read_text().replace("models/x.yaml", "models/mine.yaml"))
            path.write_text(saved[-1])
        return validate_file(file)

    monkeypatch.setattr("truthgpt_serve.cli._init.write.validate_file", validate)
    with pytest.raises(ConfigError, match=r"models/mine\.yaml"):
        plan.carry_out(NewModel("x", "text-generation", "vllm", "org/x"))
    assert len(saved) == 1
    assert path.read_text() == saved[0]
    assert not (folder / "configs" / "models" / "x.yaml").exists()


def test_a_serve_file_of_another_form_is_left_with_what_to_add(folder: Path) -> None:
    (folder / "configs" / "serve.yaml").write_text("applications: [{name: a}]\n")
    done = init("x", "--from", "org/x")
    assert done.exit_code == 2
    assert "    config: models/x.yaml" in done.stderr
    done = init("x", "--from", "org/x", "--no-serve")
    assert done.exit_code == 0, done.stderr
    assert (folder / "configs" / "serve.yaml").read_text() == "applications: [{name: a}]\n"


def test_faults_that_were_there_before_do_not_count(folder: Path) -> None:
    path = folder / "configs" / "serve.yaml"
    path.write_text(path.read_text().replace("models/echo.yaml", "models/no-such.yaml"))
    path.chmod(0o640)
    done = init("x", "--from", "org/x")
    assert done.exit_code == 0, done.stderr
    assert "name: x" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_terminal_is_asked_for_what_is_missing(folder: Path) -> None:
    command = [sys.executable, "-m", "truthgpt_serve.cli", "init"]
    with on_terminal(*command, env=environment(OFFLINE), cwd=folder) as shown:
        shown.wait_for("name of the model, as clients send it: ")
        shown.type("voice\n")
        shown.wait_for("an address: ")
        shown.type("org/voice\n")
        shown.wait_for("task (text-generation, ")
        shown.type("embedding\n")
        shown.wait_for("wrote configs/models/voice.yaml: embedding by vllm")
        assert shown.end() == 0
