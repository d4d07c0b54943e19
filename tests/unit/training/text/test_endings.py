"""How runs of each method end before their last step: on request, by patience, by a bad loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, losses, run, sections_of, sentences, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.run_folder import checkpoints

METHODS = ("kto", "orpo", "reward", "ppo", "embedding", "classification")
EVALUATED = tuple(method for method in METHODS if method != "ppo")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def rows_for(method: str) -> list[dict[str, Any]]:
    words = sentences(24)
    if method == "kto":
        return [{"prompt": "Who? ", "completion": text, "label": at % 2 == 0}
                for at, text in enumerate(words)]  # fmt: skip
    if method == "ppo":
        return [{"prompt": f"Who {at}?", "wanted": "the"} for at in range(16)]
    if method == "embedding":
        return [{"anchor": text, "positive": f"So {text}"} for text in words]
    if method == "classification":
        return [{"text": text, "label": at % 2} for at, text in enumerate(words)]
    return [{"prompt": "Who? ", "chosen": text, "rejected": "No."} for text in words]


def sections_for(method: str, model: Path, folder: Path, **training: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"method": method, "epochs": 4, **training}
    if method == "ppo":
        reward = "tests.support.training_rewards:counts_the"
        given |= {"num_generations": 2, "max_new_tokens": 3, "reward": reward}
    file = write_rows(folder / "rows.jsonl", rows_for(method))
    data = {"eval_share": 0.3} if method in EVALUATED else {}
    sections = sections_of(model, file, training=given, data=data)
    if method in ("embedding", "classification"):
        sections["task"] = "embedding" if method == "embedding" else "custom"
        sections["model"]["family"] = "hf-transformers"
    return sections


class StopsAt2(RunMonitor):
    """Asks to stop at the second step."""

    def should_stop(self) -> bool:
        return len(losses(self._job.folder)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_request_to_stop_saves_and_leaves_no_result(
    method: str, model: Path, tmp_path: Path
) -> None:
    job = job_of(tmp_path / "run", sections_for(method, model, tmp_path))
    assert len(run(job, monitor_class=StopsAt2)) == 2
    assert [checkpoint.name for checkpoint in checkpoints(job.folder)] == ["step-2"]
    assert not (job.folder / "model").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_no_number_ends_the_run_and_spoils_no_checkpoint(
    method: str, model: Path, tmp_path: Path
) -> None:
    rates = {"learning_rate": 1e30, "max_grad_norm": 0.0, "checkpoint_every": 1}
    job = job_of(tmp_path / "run", sections_for(method, model, tmp_path, **rates))
    with pytest.raises(TrainingError, match=r"last whole checkpoint|no checkpoint yet") as caught:
        run(job)
    assert "lower training.learning_rate" in str(caught.value)
    for checkpoint in checkpoints(job.folder):
        for file in checkpoint.glob("*.safetensors"):
            assert all(torch.isfinite(weight).all() for weight in load_file(file).values())
    assert not (job.folder / "model").exists()


@pytest.mark.parametrize("method", EVALUATED)
def test_too_many_worse_evaluations_end_the_run_with_the_best_weights(
    method: str, model: Path, tmp_path: Path
) -> None:
    training = {
        "epochs": 9,
        "eval_every": 1,
        "early_stopping_patience": 1,
        "learning_rate": 0.05,  # far too much: the loss rises soon
        "scheduler": "constant",
    }
    job = job_of(tmp_path / "run", sections_for(method, model, tmp_path, **training))
    steps = len(run(job))
    evaluated = [e for e in read_events(job.folder) if e["event"] == "evaluated"]
    _, best = min((event["loss"], event["step"]) for event in evaluated)
    assert steps == best + 1
    assert f"step-{best}" in [checkpoint.name for checkpoint in checkpoints(job.folder)]
    assert (job.folder / "model").is_dir()
