"""A run that ends before its first step: one line of why, and its name stays free."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import sections_of, sentences, write_rows
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import EventWriter, read_events
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.run import run_training
from truthgpt_serve.training.run_folder import STOP, write_json
from truthgpt_serve.training.run_record import has_trained, read_record


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(os.environ)  # the command sets what Ray reads
    yield
    os.environ.clear()
    os.environ.update(before)


def texts(number: int = 8) -> Path:
    return write_rows(Path("texts.jsonl"), [{"text": text} for text in sentences(number)])


def train(sections: dict[str, Any], **more: Any) -> bool:
    return run_training(load_model_config(sections, place="test"), say=print, **more)


def refusal(sections: dict[str, Any], **more: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        train(sections, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad_data(model: Path) -> dict[str, Any]:
    return sections_of(model, write_rows(Path("bad.jsonl"), [{"text": 3}]))


def test_a_run_whose_data_or_model_is_bad_leaves_its_name_free(model: Path) -> None:
    assert "bad.jsonl:1" in refusal(bad_data(model))
    assert "no tokenizer" in refusal(sections_of(Path("missing"), texts()))
    assert "holds nothing to learn from" in refusal(
        sections_of(model, write_rows(Path("none.jsonl"), []))
    )
    assert read_record(Path("runs/short")) is None


def test_ctrl_c_or_a_kill_in_preparation_leaves_the_name_free(model: Path) -> None:
    folder = Path("elsewhere")  # a reward function is found beside the YAML file, too
    folder.mkdir()
    program = (
        "from pathlib import Path\n"
        "assert not Path('runs/short/run.json').exists()  # which a kill here would leave behind\n"
        "raise KeyboardInterrupt\n"
    )
    (folder / "interrupted_reward.py").write_text(program)
    prompts = write_rows(Path("prompts.jsonl"), [{"prompt": "a"}] * 4)
    reward = {"method": "grpo", "num_generations": 2, "reward": "interrupted_reward:f"}
    (folder / "a.yaml").write_text(yaml.safe_dump(sections_of(model, prompts, training=reward)))
    with pytest.raises(KeyboardInterrupt):
        run_training(load_model_config(folder / "a.yaml"), say=print)
    assert read_record(Path("runs/short")) is None
    assert "bad.jsonl:1" in refusal(bad_data(model))


def test_without_ray_or_without_room_the_name_stays_free(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no such address")
    assert "RAY_ADDRESS" in refusal(sections_of(model, texts()))
    assert read_record(Path("runs/short")) is None
    Path("runs/short/..owner.part").symlink_to("/dev/full")
    assert "No space left on device" in refusal(sections_of(model, texts()))


def test_ray_that_does_not_start_in_time_is_one_line(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.\n\nThis could happen")

    monkeypatch.setattr(ray, "init", init)  # 30 s of a machine that is too busy
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = refusal(sections_of(model, texts()))
    assert "Ray did not start: The current node timed out during startup." in said
    assert "try again" in said
    assert read_record(Path("runs/short")) is None


def test_workers_that_this_machine_cannot_hold_are_planned_and_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("truthgpt_serve.training.run.ray_cluster", lambda _: nullcontext(0.0))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sections = sections_of(model, texts())
    assert train(sections, plan_only=True, num_workers=99_999)
    assert "note     --workers: 99,999 workers need a core each" in capsys.readouterr().out
    assert "99,999 workers need a core each" in refusal(sections, num_workers=99_999)
    assert read_record(Path("runs/short")) is None


def test_ctrl_c_while_workers_wait_for_their_places_ends_the_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(job: TrainingJob, *_: object) -> None:
        (job.folder / STOP).touch()  # as the handler of the signal does
        time.sleep(60)  # no worker begins

    monkeypatch.setattr("truthgpt_serve.training.launch._fit", fit)
    monkeypatch.setattr("truthgpt_serve.training.run.ray_cluster", lambda _: nullcontext(0.0))
    began = time.monotonic()
    assert not train(sections_of(model, texts()))
    assert time.monotonic() - began < 30
    assert "stopped; go on with --resume from the start" in capsys.readouterr().out


def test_a_run_blocks_its_name_from_its_first_step_on(model: Path) -> None:
    folder = Path("runs/short")
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"config": {"seed": 7}, "num_workers": 3})
    writer = EventWriter(folder)
    writer.write("begin", num_steps=3, first_step=0, units="tokens")
    writer.write("failed", message="the weights do not fit", foreseen=True)
    assert not has_trained(folder)
    assert "bad.jsonl:1" in refusal(bad_data(model))
    assert "bad.jsonl:1" in refusal(bad_data(model), resume=True)
    writer.write("step", step=1, loss=2.0)
    writer.close()
    assert has_trained(folder)
    assert "there is a run already" in refusal(bad_data(model))
    with pytest.raises(TrainingError, match="seed: was 7, is 42"):
        train(bad_data(model), resume=True)
    assert len(read_events(folder)) == 3


def test_a_run_that_is_not_there_cannot_go_on(model: Path) -> None:
    assert "no run to continue" in refusal(bad_data(model), resume=True)
