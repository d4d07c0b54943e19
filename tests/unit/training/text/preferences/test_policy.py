"""`ppo` on a tiny model: what it computes, that it learns, and that a cut run goes on as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, write_rows
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.plan import count_steps
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.text.preferences.trainers import create_ppo

REWARD = "tests.support.training_rewards:counts_e"
LORA = {"lora": {"enabled": True, "r": 4}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def sections(model: Path, folder: Path, **given: Any) -> dict[str, Any]:
    data = write_rows(folder / "prompts.jsonl", [{"prompt": f"Ada finds {n}"} for n in range(16)])
    training = {
        "method": "ppo",
        "reward": REWARD,
        "num_generations": 2,
        "num_ppo_epochs": 3,
        "train_batch_size": 4,
        "grad_accum_steps": 2,
        "max_new_tokens": 8,
        **given.pop("training", {}),
    }
    return sections_of(model, data, training=training, **given)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == "step"]


@pytest.mark.long("trains several times")
@pytest.mark.parametrize("optim", [{}, LORA], ids=["whole", "adapter"])
def test_a_run_goes_on_in_the_middle_of_its_answers(
    optim: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    limits = {"max_steps": 7, "checkpoint_every": 4, "keep_checkpoints": 2}
    given = sections(model, tmp_path, training=limits, model_optim=optim)
    job = job_of(tmp_path / "run", given)
    whole = run(job)
    steps = steps_of(job.folder)
    assert len(whole) == 7
    names = {"policy_loss", "value_loss", "clip_ratio"}
    assert all(names <= {*step} and step["num_units"] > 8 * 4 for step in steps)
    assert [at for at, step in enumerate(steps) if "reward" in step] == [0, 3, 6]
    assert steps[0]["kl"] == 0  # nothing has moved yet
    assert steps[0]["clip_ratio"] == 0
    assert steps[6]["kl"] > 0
    (checkpoint,) = checkpoints(job.folder)[:1]
    assert checkpoint.name == "step-4"  # the first of three passes over the second answers
    forget_after(job.folder, 4)
    assert run(job_of(job.folder, given, checkpoint=checkpoint)) == whole
    assert steps_of(job.folder)[-1]["value_loss"] == steps[-1]["value_loss"]
    result = {path.name for path in (job.folder / "model").iterdir()}
    assert ("adapter_model.safetensors" if optim else "model.safetensors") in result
    assert not [name for name in result if "value" in name]


@pytest.mark.long("trains until it does what is rewarded")
def test_it_comes_to_do_what_is_rewarded(model: Path, tmp_path: Path) -> None:
    rows = {"train_batch_size": 32, "grad_accum_steps": 1, "num_ppo_epochs": 2}
    limits = {"max_steps": 32, "learning_rate": 5e-3, "scheduler": "constant", "beta": 0.0}
    given = sections(model, tmp_path, training={**rows, **limits})
    job = job_of(tmp_path / "run", given)
    run(job)
    rewards = [step["reward"] for step in steps_of(job.folder) if "reward" in step]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3]), rewards


def test_it_sees_what_the_model_says(model: Path, tmp_path: Path) -> None:
    job = job_of(tmp_path / "run", sections(model, tmp_path))
    training = job.cfg["training"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    learning, plain = (
        AutoModelForCausalLM.from_pretrained(model, dtype="float32") for _ in range(2)
    )
    rows = [{"prompt": f"Ada finds {n}"} for n in range(16)]
    given = {
        "model": learning,
        "train_dataset": Dataset.from_list(rows),
        "eval_dataset": None,
        "processing_class": tokenizer,
        "peft_config": None,
    }
    trainer = create_ppo(job, count_steps(training, 16, 1, rows_per_example=2), given)
    head = trainer._head
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    batch = trainer._generate_and_score_completions([rows[at // 2] for at in range(8)])
    mask = batch["completion_mask"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    num_tokens = mask.shape[1]
    with torch.no_grad():
        said = plain(
            input_ids=ids,
            attention_mask=torch.cat([batch["prompt_mask"], mask], dim=1),
            output_hidden_states=True,
        )
        values = head(said.hidden_states[-1]).squeeze(-1)[:, -num_tokens - 1 : -1]
    log_probs = said.logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    log_probs = log_probs[:, -num_tokens:]
    assert torch.allclose(batch["old_per_token_logps"] * mask, log_probs * mask, atol=1e-4)
    assert torch.allclose(batch["old_values"] * mask, values * mask, atol=1e-4)
    texts = tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    scores = torch.tensor([text.count("e") / max(1, len(text)) for text in texts])
    # Nothing has moved yet, so only the score is a reward; advantage and value make the return.
    assert torch.allclose(trainer._scores, scores)
    last = mask.sum(1) - 1
    rows_at = torch.arange(len(scores))
    assert torch.allclose(batch["returns"][rows_at, last], scores, atol=1e-5)
    assert abs(float((batch["advantages"] * mask).sum())) < 1e-3
