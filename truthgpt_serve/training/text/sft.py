"""Learning from texts: the loop around the Hugging Face `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import Trainer, TrainingArguments

from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import count_steps
from truthgpt_serve.training.text.arguments import trainer_arguments
from truthgpt_serve.training.text.examples import IGNORED
from truthgpt_serve.training.text.models import load_model, load_tokenizer
from truthgpt_serve.training.text.prepare import eval_table, prepare, train_table
from truthgpt_serve.training.text.trainer import Course, CourseTrainer

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
    """The Hugging Face `Trainer` with our checkpoints and monitor."""


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
    trainer.train(resume_from_checkpoint=str(job.checkpoint) if job.checkpoint else None)
    if not trainer.course.stopped:
        trainer.write_result(tokenizer, dtype)
