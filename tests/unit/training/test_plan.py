from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.cli import main
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.launch import Workers
from truthgpt_serve.training.loops import find_loop
from truthgpt_serve.training.plan import Facts, Plan, Steps, count_steps, memory_bytes
from truthgpt_serve.training.progress import Progress
from truthgpt_serve.training.serving import serving_lines
from truthgpt_serve.training.text.prepare import prepare, train_table
from truthgpt_serve.training.trackers import check_tracker, create_tracker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def training(**given: Any) -> dict[str, Any]:
    defaults = {"train_batch_size": 2, "grad_accum_steps": 2, "epochs": 3, "warmup_ratio": 0.1}
    return {**defaults, "max_steps": None, **given}


@pytest.mark.parametrize(
    ("num_examples", "num_workers", "given", "steps"),
    [
        (8, 1, {}, Steps(2, 6, 1, 4)),
        (9, 1, {}, Steps(3, 9, 1, 4)),
        (9, 2, {}, Steps(2, 6, 1, 8)),
        (1, 4, {}, Steps(1, 3, 1, 16)),
        (8, 1, {"max_steps": 50}, Steps(2, 50, 5, 4)),
        (8, 1, {"warmup_ratio": 0.0}, Steps(2, 6, 0, 4)),
        (8, 1, {"warmup_ratio": 1.0}, Steps(2, 6, 6, 4)),
    ],
)
def test_steps_are_counted(
    num_examples: int, num_workers: int, given: dict[str, Any], steps: Steps
) -> None:
    assert count_steps(training(**given), num_examples, num_workers) == steps


@pytest.mark.parametrize("num_rows", [7, 8, 9])
def test_the_plan_has_as_many_steps_as_the_trainer_takes(
    num_rows: int, model: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(num_rows)])
    job = job_of(tmp_path / "run", sections_of(model, data, training={"epochs": 2}))
    facts = prepare(job)
    steps = count_steps(job.cfg["training"], facts.num_examples, 1)
    assert len(run(job)) == steps.total
    assert facts.num_examples == num_rows
    assert facts.num_units == sum(len(row["input_ids"]) for row in train_table(job))


def test_the_plan_says_what_will_be_done() -> None:
    facts = Facts(
        units="tokens",
        num_examples=100,
        num_units=5000,
        num_parameters=7_000_000_000,
        num_trainable=12_000,
        weight_bytes=14 * 2**30,
        activation_bytes=2**30,
        num_eval_examples=3,
        num_bad_rows=7,
        bad_rows=["a.jsonl:3: is not JSON"],
        notes=["something else"],
    )
    steps = count_steps(training(), 100, 2)
    plan = Plan("demo", "runs/demo", "sft", Workers(2, 1, 0).describe(), facts, steps, 5)
    text = "\n".join(plan.lines())
    assert "7.0B parameters, 12.0k of them trained" in text
    assert "100 examples, 5,000 tokens; 3 examples to evaluate on" in text
    assert "steps    39, 5 of them done; 13 an epoch, 4 to warm up" in text
    assert "8 rows, about 400 tokens" in text
    assert "about 15.0 GiB for each worker" in text
    assert "2 workers on CPU, 1 core each" in text
    assert "skipped  7 bad rows:\n           a.jsonl:3: is not JSON\n           and 6 more" in text
    assert memory_bytes(facts) == 15 * 2**30 + 12_000 * 12


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_has_rate_and_time_left() -> None:
    stream = Terminal()
    progress = Progress(stream)
    progress.show({"event": "begin", "num_steps": 100, "first_step": 0, "units": "tokens", "at": 0})
    for step in range(1, 11):
        event = {"event": "step", "step": step, "loss": 2.0, "num_units": 500, "at": step * 0.5}
        progress.show(event)
    progress.show({"event": "evaluated", "step": 10, "loss": 1.5, "at": 5.5})
    progress.close()
    text = stream.getvalue()
    assert "[##......................] step 10/100  loss 2.0000  1,000 tokens/s  00:45 left" in text
    assert "\revaluated at step 10: loss 1.5\n" in text
    assert text.endswith("left\n")


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(stream, line_every_s=1000)
    progress.show({"event": "begin", "num_steps": 50, "first_step": 0, "units": "images", "at": 0})
    for step in range(1, 51):
        event = {"event": "step", "step": step, "loss": 1.0, "num_units": 4, "at": step * 1.0}
        progress.show(event)
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 2
    assert lines[-1] == "step 50/50  loss 1.0000  4 images/s  00:00 left"


def test_the_lines_to_serve_are_right(tmp_path: Path) -> None:
    given = {"run_name": "tales", "model": {"name_or_path": "org/model"}}
    config = load_model_config(given, place="test")
    assert serving_lines(config, tmp_path) == ["model:", f"  name_or_path: {tmp_path}"]
    (tmp_path / "adapter_config.json").write_text("{}")
    lines = serving_lines(config, tmp_path)
    assert lines[-1] == f"    - {{name: tales, path: {tmp_path}}}"


def test_what_cannot_be_trained_is_told() -> None:
    given = {"model": {"name_or_path": "org/model"}, "data": {"dataset": "org/data"}}
    for task in ("embedding", "tensor"):
        cfg = load_model_config({**given, "task": task}, place="test").to_cfg()
        with pytest.raises(TrainingError, match=f"task: {task} cannot be trained"):
            find_loop(cfg)
    image = {**given, "task": "image-generation", "training": {"method": "dpo"}}
    with pytest.raises(TrainingError, match="dpo is for text"):
        find_loop(load_model_config(image, place="test").to_cfg())


def test_a_tracker_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker("none")
    check_tracker("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match="pip install wandb"):
        check_tracker("wandb")


def test_tensorboard_gets_the_curves(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(8)])
    curves = {"tracker": "tensorboard", "log_every": 1}
    job = job_of(tmp_path / "run", sections_of(model, data, training=curves))
    found = run(job)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(job.folder / "logs")).Reload()
    points = [point.value for point in accumulator.Scalars("train/loss")]
    assert points == pytest.approx(found)
    assert losses(job.folder) == found


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Weights & Biases' real client, which writes into files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    yield wandb
    wandb.teardown()


def test_wandb_gets_the_curves_and_a_resumed_run_goes_on_in_them(
    wandb: Any, model: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(8)])
    curves = {"tracker": "wandb", "log_every": 1, "max_steps": 2}
    job = job_of(tmp_path / "run", sections_of(model, data, training=curves))
    found = run(job)
    (first,) = (job.folder / "logs" / "wandb").glob("offline-run-*/*.wandb")
    record = first.read_bytes()
    assert all(f"{value!r}".encode() in record for value in found)
    assert b"train/loss" in record
    create_tracker(job.cfg, job.folder, first_step=2).close()
    runs = {file.name for file in (job.folder / "logs" / "wandb").glob("offline-run-*/*.wandb")}
    assert runs == {first.name}
    assert len(list((job.folder / "logs" / "wandb").glob("offline-run-*"))) == 2


def test_wandb_without_an_account_is_told(
    wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would lie
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    cfg = {"run_name": "a", "training": {"tracker": "wandb"}}
    with pytest.raises(TrainingError, match=r"training.tracker: wandb: .*WANDB_MODE=offline"):
        create_tracker(cfg, tmp_path, first_step=0)


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"method": "grpo"}, "training.reward", "is required by method: grpo"),
        ({"reward": "a:b"}, "training.reward", "is of no use to method: sft"),
        ({"method": "grpo", "reward": "a.b"}, "training.reward", "is not usable here"),
        ({"method": "ppo"}, "training.method", "must be one of sft, dpo, grpo"),
    ],
)
def test_a_method_must_fit_its_reward(sections: dict[str, Any], place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config({"training": sections}, place="test")
    assert f"{place}: " in str(caught.value)
    assert message in str(caught.value)


def test_the_command_reports_a_missing_data_set(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.yaml"
    file.write_text(json.dumps({"model": {"name_or_path": str(model)}}))
    done = CliRunner().invoke(main, ["train", str(file), "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "data.dataset: is required for training" in done.output
