"""Learning the classes of texts: the loop around the Hugging Face `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import Facts, count_steps
from truthgpt_serve.training.text import prepare as tables
from truthgpt_serve.training.text.labels.loop import (
    LabelTrainer,
    label_arguments,
    pad_id_of,
    pad_rows,
    run_trainer,
)
from truthgpt_serve.training.text.models import load_config, load_model, load_tokenizer

MAX_CLASSES = 10_000


def prepare(job: TrainingJob) -> Facts:
    """Prepares the data; see `text.prepare`.

    Raises:
        TrainingError: The data cannot be used, or has fewer than two classes.
    """
    facts = tables.prepare(job)
    labels = find_labels(job)
    shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    return facts.with_note(f"{len(labels)} classes: {shown}")


def find_labels(job: TrainingJob) -> list[str]:
    """Returns the names of the classes in the order of the model's outputs.

    A model that tells all of them apart already keeps its own order and further classes.

    Raises:
        TrainingError: There are fewer than two, or too many.
    """
    found: set[str] = set()
    for table in (tables.train_table(job), tables.eval_table(job)):
        found |= set() if table is None else set(table.unique("label"))
    if not 2 <= len(found) <= MAX_CLASSES:
        message = f"the column 'label' has {len(found):,} different values"
        raise TrainingError(f"{message} (a classifier takes 2 to {MAX_CLASSES:,} classes)")
    config = load_config(job.cfg)
    names = getattr(config, "architectures", None) or ()
    own = [str(config.id2label[index]) for index in sorted(config.id2label)]
    if found <= set(own) and any(name.endswith("ForSequenceClassification") for name in names):
        return own
    numbers = all(label.isascii() and label.isdigit() for label in found)
    return sorted(found, key=int) if numbers else sorted(found)


@dataclass(frozen=True, slots=True)
class ClassBatch:
    """Makes a batch of examples.

    Attributes:
        pad_id: Fills rows up.
        index: The output of each class.
    """

    pad_id: int
    index: Mapping[str, int]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids` and `attention_mask`, rows by tokens, and `labels`, `[rows]`."""
        batch = pad_rows([example["input_ids"] for example in examples], self.pad_id)
        labels = [self.index[example["label"]] for example in examples]
        return {**batch, "labels": torch.tensor(labels)}


class ClassTrainer(LabelTrainer):
    """Trains by cross entropy, and reports how many classes are right."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Returns the mean loss of a batch."""
        labels = inputs["labels"]
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**given).logits
        self.note("accuracy", (logits.argmax(-1) == labels).float().mean())
        return torch.nn.functional.cross_entropy(logits.float(), labels)


def train(job: TrainingJob, monitor: Monitor) -> None:
    """Trains on the prepared tables; see `Monitor` for what is reported.

    Raises:
        TrainingError: The loss is no number, the disk is full, or the model cannot be trained.
    """
    examples, held_out = tables.train_table(job), tables.eval_table(job)
    labels = find_labels(job)
    steps = count_steps(job.cfg["training"], len(examples), job.num_workers)
    tokenizer = load_tokenizer(job.cfg)
    pad_id = pad_id_of(tokenizer)
    arguments = label_arguments(job, steps)
    model, dtype = load_model(job.cfg, labels)
    model.config.get_text_config().pad_token_id = pad_id  # decoders look for the last token by it
    trainer = ClassTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=ClassBatch(pad_id, {label: index for index, label in enumerate(labels)}),
    )
    run_trainer(trainer, job, monitor, steps, dtype)
