"""What a job costs, learned or guessed."""

from __future__ import annotations

import pytest

from deployments.hf_diffusers.stepping.scheduling.cost_model import CostKey, CostModel


def test_costs_are_learned_and_guessed_by_area() -> None:
    costs = CostModel(max_entries=2)
    small, large = CostKey("p", (512, 512)), CostKey("p", (1024, 1024))
    assert costs.estimate(large) == pytest.approx(4 * costs.estimate(small))
    costs.observe(small, 0.05)
    assert costs.estimate(small) == 0.05
    assert costs.estimate(large) == pytest.approx(0.2)
    costs.observe(small, 0.15)
    assert 0.05 < costs.estimate(small) < 0.15
    for side in (8, 16, 24):
        costs.observe(CostKey("q", (side, side)), 1.0)
    assert costs.estimate(small) == pytest.approx(costs.estimate(large) / 4)  # forgotten
