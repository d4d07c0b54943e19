"""Learning which texts are alike: the loop around the Hugging Face `Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.plan import Facts, count_steps
from truthgpt_serve.training.text import prepare as tables
from truthgpt_serve.training.text.labels.examples import max_tokens
from truthgpt_serve.training.text.labels.loop import (
    LabelTrainer,
    label_arguments,
    pad_id_of,
    pad_rows,
    run_trainer,
)
from truthgpt_serve.training.text.labels.losses import cosine_loss, ranking_loss, triplet_loss
from truthgpt_serve.training.text.labels.pooling import choose_pooling, pool, write_layout
from truthgpt_serve.training.text.models import load_config, load_model, load_tokenizer

_PARTS = ("first_ids", "second_ids", "third_ids")


def prepare(job: TrainingJob) -> Facts:
    """Prepares the data; see `text.prepare`.

    Raises:
        TrainingError: The data cannot be used, or does not fit `training.embedding_loss`.
    """
    pooling = choose_pooling(job.cfg, load_config(job.cfg))
    facts = tables.prepare(job)
    found = {choose_loss(job, table) for table in _tables(job)}
    if len(found) > 1:
        message = "data.dataset and data.eval_dataset need different losses"
        raise TrainingError(f"{message} (make both scored pairs, or both anchors with positives)")
    if found == {"ranking"} and job.cfg["training"]["train_batch_size"] < 2:
        message = "training.train_batch_size: the ranking loss compares the texts of a batch"
        raise TrainingError(f"{message} (write at least 2; grad_accum_steps does not help)")
    return facts.with_note(f"loss: {found.pop()}; pooling: {pooling}, vectors of length 1")


def _tables(job: TrainingJob) -> list[Any]:
    both = (tables.train_table(job), tables.eval_table(job))
    return [table for table in both if table is not None]


def choose_loss(job: TrainingJob, table: Any) -> str:
    """Returns `ranking`, `triplet` or `cosine`, by the setting and what the rows have.

    Raises:
        TrainingError: The rows do not have what it needs.
    """
    wanted = str(job.cfg["training"]["embedding_loss"])
    num_scored = len(table) - table.data.column("score").null_count
    if 0 < num_scored < len(table):
        message = f"{num_scored:,} of {len(table):,} rows have a score"
        raise TrainingError(f"{message} (train scored pairs and others apart)")
    scored = num_scored > 0
    loss = ("cosine" if scored else "ranking") if wanted == "auto" else wanted
    if scored != (loss == "cosine"):
        needs = "sentence1, sentence2 and score" if loss == "cosine" else "anchor and positive"
        message = f"training.embedding_loss: {loss} needs the columns {needs}"
        raise TrainingError(f"{message} (write auto)")
    if loss == "triplet" and not all(row["third_ids"] for row in table):
        message = "training.embedding_loss: triplet needs a negative in every row"
        raise TrainingError(f"{message} (write ranking, or add them)")
    return loss


@dataclass(frozen=True, slots=True)
class SentenceBatch:
    """Makes a batch of examples; the texts of all parts are one below the other.

    Attributes:
        pad_id: Fills rows up.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns `input_ids` and `attention_mask`, texts by tokens, `[rows]` scores or none.

        The texts are the anchors, the positives and the negatives of those rows that have one.
        """
        rows = [example[part] for part in _PARTS for example in examples if example[part]]
        batch = pad_rows(rows, self.pad_id)
        if examples[0]["score"] is not None:
            batch["scores"] = torch.tensor([float(example["score"]) for example in examples])
        # Workers that share a batch cut each tensor alike, so this one has a row of each text too.
        batch["num_rows"] = torch.full((len(rows),), len(examples))
        return batch


class EmbeddingTrainer(LabelTrainer):
    """Trains a model's layers by a loss on the pooled vectors.

    `measure` is to be called before `train`.
    """

    _loss = _pooling = ""
    _max_tokens = 0

    def measure(self, loss: str, pooling: str, max_tokens: int) -> None:
        """Sets the loss, the pooling, and the tokens at which texts are cut."""
        self._loss, self._pooling, self._max_tokens = loss, pooling, max_tokens

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Returns the mean loss of a batch."""
        training = self.course.training
        mask, num_rows = inputs["attention_mask"], int(inputs["num_rows"][0])
        hidden = model(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state
        vectors = pool(self._pooling, hidden.float(), mask)
        first, second = vectors[:num_rows], vectors[num_rows : 2 * num_rows]
        third = vectors[2 * num_rows :]
        if self._loss == "cosine":
            return cosine_loss(first, second, inputs["scores"])
        near = (first * second).sum(-1)
        self.note("positive_cosine", near.mean())
        if self._loss == "triplet":
            self.note("accuracy", (near > (first * third).sum(-1)).float().mean())
            return triplet_loss(first, second, third, training["triplet_margin"])
        others = first @ torch.cat([second, third]).T
        wanted = torch.arange(num_rows, device=others.device)
        self.note("accuracy", (others.argmax(-1) == wanted).float().mean())
        return ranking_loss(first, second, third, training["similarity_scale"])

    def add_files(self, folder: Path) -> None:
        """Writes how vectors are made, as sentence-transformers reads it."""
        size = self.model.config.get_text_config().hidden_size
        write_layout(folder, self.course.job.cfg, self._pooling, size, self._max_tokens)


def freeze_unused(model: Any) -> None:
    """Leaves out of training what makes no vectors of tokens: several workers await its gradient.

    Encoders such as BERT have a layer of their own behind the first token, for other tasks.
    """
    pooler = getattr(model, "pooler", None)
    if pooler is not None:
        pooler.requires_grad_(False)


def train(job: TrainingJob, monitor: Monitor) -> None:
    """Trains on the prepared tables; see `Monitor` for what is reported.

    Raises:
        TrainingError: The loss is no number, the disk is full, or the model cannot be trained.
    """
    examples, held_out = tables.train_table(job), tables.eval_table(job)
    steps = count_steps(job.cfg["training"], len(examples), job.num_workers)
    tokenizer = load_tokenizer(job.cfg)
    arguments = label_arguments(job, steps)
    model, dtype = load_model(job.cfg)
    freeze_unused(model)
    trainer = EmbeddingTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=SentenceBatch(pad_id_of(tokenizer)),
    )
    pooling = choose_pooling(job.cfg, load_config(job.cfg))
    trainer.measure(choose_loss(job, examples), pooling, max_tokens(job.cfg, tokenizer))
    run_trainer(trainer, job, monitor, steps, dtype)
