"""Learning from texts: the loop around the Hugging Face `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from truthgpt_serve.training.generation.texts import SampleCallback
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import count_steps
from truthgpt_serve.training.text.arguments import trainer_arguments
from truthgpt_serve.training.text.examples import IGNORED
from truthgpt_serve.training.text.models import load_model, load_tokenizer
from truthgpt_serve.training.text.prepare import eval_table, prepare, train_table
from truthgpt_serve.training.text.trainer import EVAL_LOSS, Course, CourseTrainer

__all__ = ["prepare", "train"]


@dataclass(frozen=True, slots=True)
class PadBatch:
    """Makes a batch of examples, filled up to the longest of them."""

    pad_id: int

    def __call__(self, examples: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids`, `labels` and `attention_mask`, each rows by tokens."""
        length = max(len(example["input_ids"]) for example in examples)

        def rows(name: str, fill: int) -> torch.Tensor:
            return torch.tensor(
                [[*example[name], *[fill] * (length - len(example[name]))] for example in examples]
            )

        ids = [[1] * len(example["input_ids"]) for example in examples]
        mask = torch.tensor([row + [0] * (length - len(row)) for row in ids])
        return {
            "input_ids": rows("input_ids", self.pad_id),
            "labels": rows("labels", IGNORED),
            "attention_mask": mask,
        }


class SftTrainer(CourseTrainer, Trainer):  # type: ignore[misc] # transformers counts as Any
    """The Hugging Face `Trainer` with our checkpoints and monitor, which counts right tokens."""

    _counts: torch.Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of a batch, and perhaps the model's outputs."""
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        counts = count_right(outputs.logits, inputs["labels"])
        self._counts = counts if self._counts is None else self._counts + counts
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the share of right tokens since the last report, over all workers."""
        name = next((name for name in ("loss", EVAL_LOSS) if name in logs), None)
        if name is not None and self._counts is not None:
            right, number = self.accelerator.reduce(self._counts, "sum").tolist()
            self._counts = None
            if number:
                logs[name.replace("loss", "token_accuracy")] = right / number
        super().log(logs, *args, **kwargs)


def count_right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns how many learned tokens are the most probable ones, and how many are learned.

    Args:
        logits: Shape (rows, tokens, vocabulary).
        labels: Shape (rows, tokens), `IGNORED` where a token is not learned.

    Returns:
        Two whole numbers on the device, shape (2,).
    """
    with torch.no_grad():
        wanted = labels[:, 1:]
        right = (logits[:, :-1].argmax(-1) == wanted).sum()
        return torch.stack([right, (wanted != IGNORED).sum()])


def train(job: TrainingJob, monitor: Monitor) -> None:
    """Trains on the prepared tables; see `Monitor` for what is reported.

    Raises:
        TrainingError: The loss is no number, the disk is full, or the model cannot be trained.
    """
    examples, held_out = train_table(job), eval_table(job)
    steps = count_steps(job.cfg["training"], len(examples), job.num_workers)
    tokenizer = load_tokenizer(job.cfg)
    arguments = TrainingArguments(**trainer_arguments(job, steps))
    model, dtype = load_model(job.cfg)
    trainer = SftTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=PadBatch(tokenizer.pad_token_id or tokenizer.eos_token_id or 0),
    )
    trainer.follow(Course(job, monitor, steps, evaluates=held_out is not None))
    if job.cfg["training"]["samples"] is not None:
        trainer.add_callback(SampleCallback(job, monitor, steps, tokenizer))
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if not trainer.course.stopped:
        trainer.write_result(tokenizer, dtype)
