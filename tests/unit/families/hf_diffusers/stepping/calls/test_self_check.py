"""Denoisers without a schema: batched once a self-check has passed, else alone for ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from deployments.hf_diffusers.stepping.calls.self_check import is_telling, largest_difference
from tests.support.images_engine import (
    TOLERANCE,
    create_inputs,
    create_pair,
    difference,
    engine_of,
    run_stock,
)


class UnknownModel(UNet2DConditionModel):  # type: ignore[misc]  # diffusers has no type information
    """A denoiser that no schema knows, and that may be batched."""

    def forward(self, sample: Any, timestep: Any, **kwargs: Any) -> Any:
        return super().forward(sample, timestep, **kwargs)


class FirstTimestepModel(UNet2DConditionModel):  # type: ignore[misc]  # as above
    """A denoiser that reads one timestep for the whole batch: batching it is silently wrong."""

    def forward(self, sample: Any, timestep: Any, **kwargs: Any) -> Any:
        return super().forward(sample, torch.as_tensor(timestep).reshape(-1)[:1], **kwargs)


def _pair_of(cls: type) -> tuple[Any, Any]:
    ours, stock = create_pair()
    for pipeline in (ours, stock):
        pipeline.unet.__class__ = cls
    return ours, stock


def _run(cls: type, steps: list[int]) -> tuple[Any, float]:
    """Returns the engine's statistics and the largest difference to the stock pipeline."""
    ours, stock = _pair_of(cls)
    requests = [create_inputs(seed, steps=count) for seed, count in enumerate(steps)]
    with engine_of(ours) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        worst = max(
            difference(job, run_stock(stock, inputs))
            for job, inputs in zip(jobs, requests, strict=True)
        )
        return engine.statistics(), worst


def test_an_unknown_denoiser_is_batched_after_its_self_check() -> None:
    statistics, worst = _run(UnknownModel, [8, 6, 4])
    assert worst <= TOLERANCE
    assert statistics.self_checks_failed == 0
    # The first step is checked: three calls alone and one batch. Later ones are batched at once.
    assert statistics.forwards["p.unet"] == 8 + 3


def test_a_denoiser_that_fails_its_self_check_runs_alone_for_ever() -> None:
    statistics, worst = _run(FirstTimestepModel, [8, 6, 4])
    assert worst <= TOLERANCE
    assert statistics.self_checks_failed == 1
    assert statistics.forwards["p.unet"] == 8 + 6 + 4 + 1


def test_requests_in_step_prove_nothing_and_so_are_not_batched() -> None:
    statistics, worst = _run(FirstTimestepModel, [5, 5])
    assert worst <= TOLERANCE
    assert statistics.self_checks_failed == 0
    assert statistics.forwards["p.unet"] == 10


def test_telling_calls_differ_in_every_row() -> None:
    one, other = torch.zeros(2, 4), torch.ones(2, 4)
    assert is_telling([{"sample": one, "timestep": one}, {"sample": other, "timestep": other}])
    assert not is_telling([{"sample": one, "timestep": one}, {"sample": other, "timestep": one}])
    assert is_telling([{"sample": one, "other": one}, {"sample": other, "other": one}])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (torch.ones(2), torch.ones(2), 0.0),
        ((torch.ones(2), torch.tensor([4.0])), (torch.ones(2), torch.tensor([2.0])), 1.0),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2), torch.ones(2).half(), float("inf")),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, 0.0),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2)), float("inf")),
        ((), (), float("inf")),
    ],
)
def test_differences_are_relative_and_notice_other_shapes(
    one: Any, other: Any, expected: float
) -> None:
    assert largest_difference(one, other) == pytest.approx(expected)


def test_nan_is_a_difference() -> None:
    found = largest_difference(torch.tensor([torch.nan]), torch.ones(1))
    assert not found <= 1e9
