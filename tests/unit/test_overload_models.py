"""The rate that the overload of models counts by: of answers that end together, too."""

from __future__ import annotations

import pytest

from benchmarks.overload_models import Seen


@pytest.mark.parametrize("first_s", [0.0, 0.4, 0.8, 1.2, 1.6])
@pytest.mark.parametrize("num_at_once", [1, 16])
def test_the_rate_of_batches(num_at_once: int, first_s: float) -> None:
    per_s = 10.0
    batch_s = num_at_once / per_s
    ends_s = [first_s + number * batch_s for number in range(int(30 / batch_s))]
    seen = Seen(ends_s=[end_s for end_s in ends_s for _ in range(num_at_once)])
    assert seen.rate(15) == pytest.approx(per_s, rel=0.02)


def test_the_rate_of_nothing() -> None:
    assert Seen().rate(15) == 0
