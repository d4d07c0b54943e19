from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.cli import main
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loops import find_loop
from truthgpt_serve.training.plan import Facts, Plan, StepCounts, count_steps, memory_bytes
from truthgpt_serve.training.text.prepare import prepare, train_table
from truthgpt_serve.training.workers import Workers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def training(**given: Any) -> dict[str, Any]:
    defaults = {"train_batch_size": 2, "grad_accum_steps": 2, "epochs": 3, "warmup_ratio": 0.1}
    return {**defaults, "max_steps": None, **given}


@pytest.mark.parametrize(
    ("num_examples", "num_workers", "given", "steps"),
    [
        (8, 1, {}, StepCounts(2, 6, 1, 4)),
        (9, 1, {}, StepCounts(3, 9, 1, 4)),
        (9, 2, {}, StepCounts(2, 6, 1, 8)),
        (1, 4, {}, StepCounts(1, 3, 1, 16)),
        (8, 1, {"max_steps": 50}, StepCounts(2, 50, 5, 4)),
        (8, 1, {"warmup_ratio": 0.0}, StepCounts(2, 6, 0, 4)),
        (8, 1, {"warmup_ratio": 1.0}, StepCounts(2, 6, 6, 4)),
    ],
)
def test_steps_are_counted(
    num_examples: int, num_workers: int, given: dict[str, Any], steps: StepCounts
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
        optimizer_bytes=8 * 12_000,
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


def test_what_cannot_be_trained_is_told() -> None:
    given = {"model": {"name_or_path": "org/model"}, "data": {"dataset": "org/data"}}
    for task, message in (
        ("tensor", "task: tensor cannot be trained"),
        ("embedding", r"not trained by training.method: sft \(set training.method: embedding,"),
    ):
        cfg = load_model_config({**given, "task": task}, place="test").to_cfg()
        with pytest.raises(TrainingError, match=message):
            find_loop(cfg)
    image = {**given, "task": "image-generation", "training": {"method": "dpo"}}
    with pytest.raises(TrainingError, match="dpo is for text"):
        find_loop(load_model_config(image, place="test").to_cfg())


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"method": "grpo"}, "training.reward", "is required by method: grpo"),
        ({"reward": "a:b"}, "training.reward", "is of no use to method: sft"),
        ({"method": "grpo", "reward": "a.b"}, "training.reward", "is not usable here"),
        ({"method": "a2c"}, "training.method", "must be one of sft, dpo, kto, orpo"),
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
