"""The order in which examples are read, and their random numbers.

Both follow from the seed and the position alone, never from a generator's state: so a run that goes
on from a checkpoint, and one that is spread over other workers, sees exactly the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_SHUFFLE, _TRAIN, _EVAL = range(3)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one example.

    Attributes:
        noise: Normal, of the latent's shape: what is added to the latent.
        posterior: Normal, of the same shape: which latent of the autoencoder's distribution.
        level: Uniform in (0, 1): how noisy the latent becomes.
        drop: Uniform in [0, 1): whether the caption is dropped.
    """

    noise: NDArray[np.float32]
    posterior: NDArray[np.float32]
    level: float
    drop: float


def draw_for_training(seed: int, position: int, shape: tuple[int, ...]) -> Draws:
    """Returns the numbers of the example at a position in the order of training."""
    generator = np.random.default_rng((seed, _TRAIN, position))
    noise = generator.standard_normal(shape, dtype=np.float32)
    posterior = generator.standard_normal(shape, dtype=np.float32)
    level, drop = generator.random(2)
    return Draws(noise, posterior, _inside(float(level)), float(drop))


def draw_for_evaluation(seed: int, row: int, shape: tuple[int, ...]) -> Draws:
    """Returns the numbers of a row of the evaluation data: the same in every evaluation.

    The noise levels of the rows follow the golden ratio, so that few rows already cover all levels
    evenly. No caption is dropped.
    """
    generator = np.random.default_rng((seed, _EVAL, row))
    noise = generator.standard_normal(shape, dtype=np.float32)
    posterior = generator.standard_normal(shape, dtype=np.float32)
    return Draws(noise, posterior, _inside((0.5 + row * GOLDEN_RATIO) % 1.0), 1.0)


def _inside(level: float) -> float:
    return min(max(level, 1e-6), 1 - 1e-6)


@lru_cache(maxsize=3)
def _permutation(seed: int, num_rows: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(num_rows)


@dataclass(frozen=True, slots=True)
class Order:
    """Rows in one endless sequence: all of them shuffled, and again and again.

    Steps take equally many positions each, also across the end of a pass: no batch is smaller than
    the others, so gradients of micro-batches and of workers can be averaged plainly.

    Attributes:
        num_rows: Rows of the training data.
        seed: Of the run.
        batch_size: Examples of one worker's micro-batch.
        accumulation: Micro-batches of a step.
        num_workers: Workers that share each step.
    """

    num_rows: int
    seed: int
    batch_size: int
    accumulation: int
    num_workers: int

    @property
    def step_size(self) -> int:
        """Examples of one optimizer step, over all workers."""
        return self.batch_size * self.accumulation * self.num_workers

    def row(self, position: int) -> int:
        """Returns the row at a position."""
        epoch, offset = divmod(position, self.num_rows)
        return int(_permutation(self.seed, self.num_rows, epoch)[offset])

    def micro_batches(self, rank: int, first_step: int, num_steps: int) -> Iterator[list[int]]:
        """Yields the positions of each micro-batch of a worker, from after `first_step` on."""
        for step in range(first_step, num_steps):
            for turn in range(self.accumulation):
                start = step * self.step_size
                start += (turn * self.num_workers + rank) * self.batch_size
                yield list(range(start, start + self.batch_size))
