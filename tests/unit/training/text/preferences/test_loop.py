from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.text.reward import load_reward

REWARD = "tests.support.training_rewards:counts_the"
PAIR = {"prompt": "Who finds it? ", "chosen": "Ada does.", "rejected": "the clock the clock"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == "step"]


def log_probability(folder: Path, prompt: str, answer: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + answer, return_tensors="pt").input_ids
    with torch.no_grad():
        scores = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
    return float(scores.gather(1, ids[0, start:, None]).sum())


@pytest.mark.long("trains until it prefers")
def test_dpo_comes_to_prefer_the_chosen_answers(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [PAIR] * 16)
    job = job_of(
        tmp_path / "run",
        sections_of(model, data, training={"method": "dpo", "checkpoint_every": 3}),
    )
    found = run(job)
    assert len(found) == 4
    assert found[0] == pytest.approx(0.6931, abs=1e-3)  # ln 2: it prefers neither yet
    assert found[-1] < 0.5
    steps = steps_of(job.folder)
    assert steps[-1]["rewards/margins"] > 0
    assert all(step["num_units"] > 0 for step in steps)

    def margin(folder: Path) -> float:
        chosen, rejected = (
            log_probability(folder, PAIR["prompt"], PAIR[k]) for k in PAIR if k != "prompt"
        )
        return chosen - rejected

    assert margin(job.folder / "model") > margin(model) + 1
    assert [checkpoint.name for checkpoint in checkpoints(job.folder)] == ["step-3"]


def test_dpo_of_an_adapter_goes_on_with_the_same_losses(model: Path, tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Who finds {n}? "} for n in range(16)]
    sections = sections_of(
        model,
        write_rows(tmp_path / "pairs.jsonl", rows),
        training={"method": "dpo", "checkpoint_every": 2, "epochs": 2},
        model_optim={"lora": {"enabled": True, "r": 4}},
        data={"eval_share": 0.2},
    )
    job = job_of(tmp_path / "run", sections)
    whole = run(job)
    evaluations = [e for e in read_events(job.folder) if e["event"] == "evaluated"]
    assert len(evaluations) == 2
    checkpoint = checkpoints(job.folder)[0]
    forget_after(job.folder, int(checkpoint.name.removeprefix("step-")))
    assert run(job_of(job.folder, sections, checkpoint=checkpoint)) == whole
    adapter = load_file(job.folder / "model" / "adapter_model.safetensors")
    assert any(bool(weight.any()) for name, weight in adapter.items() if "lora_B" in name)


def grpo_sections(model: Path, data: Path, **training: Any) -> dict[str, Any]:
    return sections_of(
        model,
        data,
        training={
            "method": "grpo",
            "reward": REWARD,
            "num_generations": 4,
            "train_batch_size": 8,
            "grad_accum_steps": 1,
            "max_new_tokens": 8,
            "learning_rate": 5e-3,
            "beta": 0.0,
            **training,
        },
    )


def test_grpo_asks_the_reward_function_and_goes_on_with_the_same_losses(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Ada finds {n}", "wanted": "the"} for n in range(8)]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    sections = grpo_sections(model, data, max_steps=6, checkpoint_every=3)
    job = job_of(tmp_path / "run", sections)
    whole = run(job)
    steps = steps_of(job.folder)
    assert len(whole) == 6
    assert all("reward" in step and step["num_units"] > 8 * 4 for step in steps)
    rewards = [step["reward"] for step in steps]
    checkpoint = checkpoints(job.folder)[0]
    assert checkpoint.name == "step-3"
    forget_after(job.folder, 3)
    assert run(job_of(job.folder, sections, checkpoint=checkpoint)) == whole
    assert [step["reward"] for step in steps_of(job.folder)] == rewards
    assert (job.folder / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"reward": "tests.support.training_rewards:missing"},
            "cannot be imported: AttributeError",
        ),
        ({"reward": "no_such_module:f"}, "cannot be imported: ModuleNotFoundError"),
        ({"reward": "tests.support.training_rewards:NOT_A_FUNCTION"}, "is not a function"),
        ({"num_generations": 3}, "no multiple of training.num_generations 3"),
        ({"train_batch_size": 64}, "a step needs 16 prompts, the data has 8"),
    ],
)
def test_grpo_is_refused_before_it_starts(
    given: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Ada finds {n}", "wanted": "the"} for n in range(8)]
    data = write_rows(tmp_path / "prompts.jsonl", rows)
    job = job_of(tmp_path / "run", grpo_sections(model, data, **given))
    with pytest.raises(TrainingError) as caught:
        load_loop(find_loop(job.cfg)).prepare(job)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({**PAIR, "rejected": PAIR["chosen"]}, "the chosen and the rejected answer are the same"),
        ({**PAIR, "chosen": None}, "'chosen' must be text, found nothing"),
        ({"chosen": "a", "rejected": "b"}, "has no 'prompt' column"),
    ],
)
def test_a_pair_that_is_none_is_reported(
    row: dict[str, Any], problem: str, model: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", [PAIR, row])
    job = job_of(tmp_path / "run", sections_of(model, data, training={"method": "dpo"}))
    with pytest.raises(TrainingError) as caught:
        load_loop(find_loop(job.cfg)).prepare(job)
    assert str(caught.value).startswith(f"{data}:2: {problem}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gives_nothing", "returned None (return a list of 8 numbers, one for each completion)"),
        ("gives_too_few", "returned 1 rewards (return a list of 8 numbers"),
        ("gives_no_number", "returned None for completion 1 (return a list of 8 numbers"),
    ],
)
def test_a_reward_that_is_no_list_of_numbers_is_named(name: str, message: str) -> None:
    reward = load_reward(f"tests.support.training_rewards:{name}")
    with pytest.raises(TrainingError) as caught:
        reward(prompts=["a"] * 8, completions=["b"] * 8)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_a_reward_may_be_an_array_and_asynchronous() -> None:
    asked = {"prompts": ["a"] * 2, "completions": ["b"] * 2}
    assert load_reward("tests.support.training_rewards:gives_an_array")(**asked) == [0.5, 1.0]
    waiting = load_reward("tests.support.training_rewards:gives_later")
    assert asyncio.run(waiting(**asked)) == [1.0, 1.0]


@pytest.mark.long("imports what trains in a process of its own")
def test_the_command_can_prepare_before_it_starts_ray() -> None:
    module = "truthgpt_serve.training.text.preferences.loop"
    program = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
