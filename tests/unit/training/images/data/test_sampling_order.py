"""The order of rows and the random numbers of image training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from truthgpt_serve.training.images.data.samples import Samples
from truthgpt_serve.training.images.data.sampling_order import (
    Order,
    draw_for_evaluation,
    draw_for_training,
)

SHAPE = (4, 2, 2)


class _Captions:
    """A data set of captions only."""

    def __len__(self) -> int:
        return 1000

    def get(self, rows: Any) -> tuple[Any, list[str]]:
        return None, [str(row) for row in rows]


def _draw(position: int) -> Any:
    return draw_for_training(7, position, SHAPE)


def test_the_asked_share_of_captions_is_dropped() -> None:
    samples = Samples(_Captions(), lambda position: position, _draw, 0.3)
    batch = samples.__getitems__(list(range(1000)))
    dropped = [caption is None for caption in batch["captions"]]
    # Three standard deviations of 1000 draws.
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.044)
    again = samples.__getitems__([5])
    assert (again["captions"][0] is None) == dropped[5]
    assert (again["noise"][0] == batch["noise"][5]).all()


def test_levels_of_an_evaluation_cover_all_noise() -> None:
    levels = sorted(draw_for_evaluation(1, row, SHAPE).level for row in range(20))
    gaps = np.diff([0.0, *levels, 1.0])
    assert gaps.max() < 0.12
    again = draw_for_evaluation(1, 3, SHAPE)
    assert (again.noise == draw_for_evaluation(1, 3, SHAPE).noise).all()


def test_noise_is_normal_and_differs_by_seed_and_position() -> None:
    values = np.concatenate([_draw(position).noise.ravel() for position in range(500)])
    assert values.mean() == pytest.approx(0, abs=0.04)
    assert values.std() == pytest.approx(1, abs=0.03)
    assert (_draw(1).noise != _draw(2).noise).all()
    assert (draw_for_training(8, 1, SHAPE).noise != _draw(1).noise).all()


def test_every_pass_has_every_row_once_whoever_reads_it() -> None:
    def rows(num_workers: int, accumulation: int) -> list[set[int]]:
        order = Order(12, 3, 2, accumulation, num_workers)
        streams = [list(order.micro_batches(rank, 0, 6)) for rank in range(num_workers)]
        steps = []
        for step in range(6):
            turns = slice(step * accumulation, (step + 1) * accumulation)
            taken = [one for stream in streams for batch in stream[turns] for one in batch]
            assert len(taken) == len(set(taken)) == order.step_size
            steps.append({order.row(position) for position in taken})
        return steps

    alone, shared = rows(1, 2), rows(2, 1)
    assert alone == shared
    passes = [set().union(*alone[start : start + 3]) for start in (0, 3)]
    assert passes == [set(range(12))] * 2
    assert alone[:3] != alone[3:]
