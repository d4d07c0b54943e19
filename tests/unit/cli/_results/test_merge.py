"""`truthgpt merge` and `truthgpt export`: what they print, write and refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve.cli import main
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.run_folder import write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an adapter, without its training."""
    folder = tmp_path_factory.mktemp("runs")
    base, run = make_tiny_llama(folder / "llama"), folder / "tales"
    run.mkdir()
    adapter = make_tiny_adapter(run / "model")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(base)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    given = {"run_name": "tales", "model": {"name_or_path": str(base)}}
    write_json(run / "run.json", {"config": load_model_config(given, place="x").to_cfg()})
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "tales")
    return tmp_path / "tales"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_merge_says_where_and_how_near_and_keeps_what_is_there(run: Path) -> None:
    done = call("merge", run)
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == f"merged into {run / 'merged'}"
    assert "Loading weights" not in done.stderr  # nor any other bar
    assert "it/s]" not in done.stderr
    assert second.startswith("largest difference of a logit to base and adapter: ")
    assert AutoModelForCausalLM.from_pretrained(run / "merged").config.model_type == "llama"
    card = (run / "merged" / "README.md").read_text()
    assert "A model trained from `llama`" in card
    assert "library_name: transformers" in card
    again = call("merge", run)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert call("merge", run, "--force", "--dtype", "bfloat16").exit_code == 0
    assert json.loads((run / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_writes_the_format_beside_the_result(run: Path) -> None:
    done = call("export", run, "--to", "safetensors", "--max-shard", "200KB")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"exported to {run / 'safetensors'}\n")
    assert len(list((run / "safetensors").glob("model-*.safetensors"))) > 1
    assert (run / "safetensors" / "README.md").is_file()


def test_what_is_wrong_is_one_line_or_clicks_own(run: Path) -> None:
    nothing = call("export", run)
    assert nothing.exit_code == 2
    assert "Missing option '--to'" in nothing.stderr
    assert "Invalid value for '--to'" in call("export", run, "--to", "keras").stderr
    for name in ("merge", "export"):
        more = ("--to", "gguf") if name == "export" else ()
        gone = call(name, run / "none", *more)
        assert (gone.exit_code, gone.stderr.count("\n")) == (2, 1)
        assert "is no folder" in gone.stderr


@pytest.mark.parametrize("size", ["xx", "-1GB", "0GB", "5", "", "nanGB"])
@pytest.mark.parametrize("command", [("merge",), ("export", "--to", "safetensors")])
def test_a_size_is_read_before_anything_is_loaded(
    run: Path, command: tuple[str, ...], size: str
) -> None:
    done = call(*command, run, "--max-shard", size)
    assert (done.exit_code, "Invalid value for '--max-shard'" in done.stderr) == (2, True)
    assert sorted(path.name for path in run.iterdir()) == ["model", "run.json"]
