"""The order in which examples are read.

It follows from the seed and the position alone, never from a generator's state: so a run that goes
on from a checkpoint, and one that is spread over other workers, sees exactly the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from truthgpt_serve.training.images.data.buckets import Shapes
from truthgpt_serve.training.plan import count_batches

_SHUFFLE, _BUCKETS, _BUCKET = 0, 3, 4
"""Keep the random numbers of one use apart from those of another, `draws` included."""


@lru_cache(maxsize=3)
def _permutation(seed: int, num_rows: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _SHUFFLE, epoch)).permutation(num_rows)


@lru_cache(maxsize=64)  # of each size that of the present pass
def _bucket_permutation(seed: int, bucket: int, num_rows: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, _BUCKET, bucket, epoch)).permutation(num_rows)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class BucketOrder(Order):
    """Rows of several sizes, each batch of one size.

    The rows of each size are one endless sequence as those of `Order`, and its batches are parts of
    it. A pass takes of each size the batches that its rows fill or begin, in an order that is
    shuffled anew for each pass; what the last batch has too much is missing in the next pass.

    Attributes:
        rows: The rows of each size.
    """

    rows: tuple[tuple[int, ...], ...] = ()

    def row(self, position: int) -> int:
        """Returns the row at a position."""
        batch, offset = divmod(position, self.batch_size)
        bucket, turn = self._batch(batch)
        rows = self.rows[bucket]
        epoch, index = divmod(turn * self.batch_size + offset, len(rows))
        found: int = rows[_bucket_permutation(self.seed, bucket, len(rows), epoch)[index]]
        return found

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        return tuple(len(rows) for rows in self.rows)

    def _batch(self, number: int) -> tuple[int, int]:
        """Returns the size of a batch, and how many of that size came before it."""
        # No pass has fewer batches than its rows fill, so the true one is not later than this.
        epoch = number * self.batch_size // self.num_rows
        while (first := count_batches(self._counts, self.batch_size, epoch)) > number:
            epoch -= 1
        return _schedule(self.seed, self._counts, self.batch_size, epoch)[number - first]


@lru_cache(maxsize=3)
def _schedule(
    seed: int, counts: tuple[int, ...], batch_size: int, epoch: int
) -> list[tuple[int, int]]:
    batches = [
        (bucket, turn)
        for bucket, count in enumerate(counts)
        for turn in range(
            math.ceil(epoch * count / batch_size), math.ceil((epoch + 1) * count / batch_size)
        )
    ]
    shuffled = np.random.default_rng((seed, _BUCKETS, epoch)).permutation(len(batches))
    return [batches[index] for index in shuffled]


def create_order(
    shapes: Shapes, seed: int, batch_size: int, accumulation: int, num_workers: int
) -> Order:
    """Returns the order of a data set's rows; arguments as the attributes of `Order`."""
    given = (len(shapes.of_row), seed, batch_size, accumulation, num_workers)
    if len(shapes.sizes) == 1:
        return Order(*given)
    return BucketOrder(*given, rows=tuple(tuple(rows.tolist()) for rows in shapes.rows()))
