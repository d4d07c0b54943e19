"""What the loops of classes and of embeddings have in common."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import StepCounts
from truthgpt_serve.training.text.arguments import trainer_arguments
from truthgpt_serve.training.text.models import load_tokenizer
from truthgpt_serve.training.text.trainer import Course, CourseTrainer


class LabelTrainer(CourseTrainer, Trainer):  # type: ignore[misc] # transformers counts as Any
    """The Hugging Face `Trainer` for losses on whole texts, each batch weighed alike."""

    loss_is_scaled_for_ga = False
    merges_adapter = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._means: dict[str, list[float]] = defaultdict(list)

    def note(self, name: str, value: torch.Tensor) -> None:
        """Keeps a number of this batch; the mean over batches and workers is reported."""
        gathered = self.accelerator.gather_for_metrics(value.detach().reshape(1))
        self._means[name].append(float(gathered.mean()))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the numbers that were kept to those that are reported."""
        prefix = "" if "loss" in logs else "eval_"
        logs.update({f"{prefix}{name}": sum(v) / len(v) for name, v in self._means.items()})
        self._means.clear()
        super().log(logs, *args, **kwargs)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """Returns the loss of a batch that is evaluated on."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None


def label_arguments(job: TrainingJob, steps: StepCounts) -> TrainingArguments:
    """Returns the trainer's arguments; columns are read by the batch's own maker."""
    return TrainingArguments(remove_unused_columns=False, **trainer_arguments(job, steps))


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Returns `input_ids` and `attention_mask` of token rows, filled up on the right."""
    length = max(len(row) for row in rows)
    ids = [[*row, *[pad_id] * (length - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def run_trainer(
    trainer: Any, job: TrainingJob, monitor: Monitor, steps: StepCounts, dtype: torch.dtype
) -> None:
    """Trains to the end, or until the run is stopped, and writes the result."""
    evaluates = trainer.eval_dataset is not None
    trainer.follow(Course(job, monitor, steps, evaluates=evaluates))
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if not trainer.course.stopped:
        trainer.write_result(load_tokenizer(job.cfg), dtype)


def pad_id_of(tokenizer: Any) -> int:
    """Returns the token that fills rows up."""
    given = tokenizer.pad_token_id
    return int(given if given is not None else tokenizer.eos_token_id or 0)
