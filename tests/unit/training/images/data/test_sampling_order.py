"""The order of rows and the random numbers of image training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from truthgpt_serve.training.images.data.buckets import Shapes, one_shape
from truthgpt_serve.training.images.data.draws import (
    Augmentation,
    draw_for_evaluation,
    draw_for_training,
)
from truthgpt_serve.training.images.data.image_files import Size
from truthgpt_serve.training.images.data.samples import Samples
from truthgpt_serve.training.images.data.sampling_order import Order, create_order
from truthgpt_serve.training.plan import count_steps

SHAPE = (4, 2, 2)


class _Captions:
    """A data set of captions only."""

    shapes = one_shape(Size(8, 8), 1000)

    def __len__(self) -> int:
        return 1000

    def get(self, rows: Any, cuts: Any, size: Any = None) -> Any:
        return {"captions": [(str(row),) for row in rows]}


def _draw(position: int, size: Any = None) -> Any:
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


def test_batches_of_buckets_are_of_one_size_and_miss_no_row() -> None:
    sizes = (Size(8, 16), Size(16, 16), Size(16, 8))
    of_row = np.array([0] * 7 + [1] * 12 + [2] * 2)
    shapes = Shapes(sizes, of_row)
    training = {
        "train_batch_size": 4,
        "grad_accum_steps": 1,
        "epochs": 3,
        "max_steps": None,
        "warmup_ratio": 0.0,
    }
    steps = count_steps(training, 21, 1, size_counts=shapes.counts())
    # 21 images of the first, 36 of the second and 6 of the third, in batches of four.
    assert steps.total == 6 + 9 + 2
    order = create_order(shapes, 3, 4, 1, 1)
    batches = [
        [order.row(one) for one in batch] for batch in order.micro_batches(0, 0, steps.total)
    ]
    for batch in batches:
        assert len({int(of_row[row]) for row in batch}) == 1
    rows = [row for batch in batches for row in batch]
    assert set(rows) == set(range(21))
    counts = np.bincount(rows)
    assert counts.min() == 3
    assert counts.max() <= 4
    # Two workers share the same batches, and a run that goes on sees those that are left.
    shared = create_order(shapes, 3, 4, 1, 2)
    pairs = zip(shared.micro_batches(0, 0, 8), shared.micro_batches(1, 0, 8), strict=True)
    taken = [[shared.row(one) for one in batch] for pair in pairs for batch in pair]
    assert taken == batches[:16]
    left = [[order.row(one) for one in batch] for batch in order.micro_batches(0, 5, 9)]
    assert left == batches[5:9]
    assert len({tuple(sorted(batch)) for batch in batches}) > 10


def test_every_second_image_is_mirrored_and_cuts_are_anywhere() -> None:
    both = Augmentation(flip=True, crop=True)
    cuts = [draw_for_training(7, position, SHAPE, both).cut for position in range(400)]
    assert np.mean([cut.flip for cut in cuts]) == pytest.approx(0.5, abs=0.075)
    assert np.mean([cut.left for cut in cuts]) == pytest.approx(0.5, abs=0.05)
    assert np.std([cut.top for cut in cuts]) > 0.25
    plain = draw_for_training(7, 3, SHAPE)
    assert (plain.cut.flip, plain.cut.left, plain.cut.top) == (False, 0.5, 0.5)
    assert (plain.noise == draw_for_training(7, 3, SHAPE, both).noise).all()
    prior = draw_for_training(7, 3, SHAPE, prior=True)
    assert (prior.noise != plain.noise).any()
