"""Opens the loaders of one run: batches to train on, and batches to evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from truthgpt_serve.training.images.data.draws import (
    Augmentation,
    EvaluationDraws,
    LatentShape,
    TrainingDraws,
)
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.data.samples import Samples, Source, open_loader
from truthgpt_serve.training.images.data.sampling_order import Order, create_order
from truthgpt_serve.training.plan import StepCounts, count_steps


class Feed:
    """The batches of one worker.

    Args:
        cfg: The configuration.
        accelerator: Of accelerate.
        latent_shape: Of the noise of each example.
        data: To train on.
        eval_data: To evaluate on, or None.
        prior: Images of the class that are learned beside, or None.

    Attributes:
        order: Of the rows to train on.
        steps: How many optimizer steps the run has.
        has_evaluation: Whether there is something to evaluate on.
    """

    def __init__(
        self,
        cfg: Mapping[str, Any],
        accelerator: Any,
        latent_shape: LatentShape,
        data: Source,
        eval_data: Source | None,
        prior: Source | None = None,
    ) -> None:
        self._cfg = cfg
        self._accelerator = accelerator
        self._latent_shape = latent_shape
        self._data, self._eval_data, self._prior = data, eval_data, prior
        self.has_evaluation = eval_data is not None
        self.order = self._create_order(data)
        self.steps: StepCounts = count_steps(
            cfg["training"],
            len(data),
            accelerator.num_processes,
            size_counts=data.shapes.counts(),
        )

    def _create_order(self, data: Source) -> Order:
        training = self._cfg["training"]
        return create_order(
            data.shapes,
            seed=self._cfg["seed"],
            batch_size=training["train_batch_size"],
            accumulation=training["grad_accum_steps"],
            num_workers=self._accelerator.num_processes,
        )

    def training(self, first_step: int) -> Iterator[Batch]:
        """Yields the micro-batches of this worker from after a step on."""
        data, order = self._cfg["data"], self.order
        augmentation = Augmentation(data["random_flip"], data["crop"] == "random")
        draws = TrainingDraws(order.seed, self._latent_shape, augmentation)
        beside = None
        if self._prior is not None:
            row_of = self._create_order(self._prior).row
            beside = Samples(self._prior, row_of, replace(draws, prior=True))
        dropout = self._cfg["training"]["caption_dropout"]
        samples = Samples(self._data, order.row, draws, dropout, beside)
        rank, num_steps = self._accelerator.process_index, self.steps.total
        positions = _Positions(partial(order.micro_batches, rank, first_step, num_steps))
        return iter(self._open(samples, positions))

    def evaluation(self) -> Iterator[Batch]:
        """Yields this worker's share of the batches to evaluate on, the same every time.

        Workers may have different numbers of them.
        """
        data = self._eval_data
        if data is None:
            return iter(())
        draws = EvaluationDraws(self.order.seed, self._latent_shape)
        samples = Samples(data, _same, draws)
        rank, step = self._accelerator.process_index, self._accelerator.num_processes
        size = self._cfg["training"]["eval_batch_size"]
        batches = [
            batch
            for rows in data.shapes.rows()
            for batch in _split(rows[rank::step].tolist(), size)
        ]
        return iter(self._open(samples, batches))

    def _open(self, samples: Samples, positions: Any) -> Any:
        workers = self._cfg["data"]["num_loader_workers"]
        return open_loader(samples, positions, workers, self._accelerator.device)


def _same(row: int) -> int:
    return row


def _split(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Positions:
    """The positions of micro-batches, as a loader wants them: iterable more than once."""

    def __init__(self, create: Callable[[], Iterator[list[int]]]) -> None:
        self._create = create

    def __iter__(self) -> Iterator[list[int]]:
        return self._create()
