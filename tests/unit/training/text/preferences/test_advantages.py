"""PPO's numbers, held against their definitions written as loops and as sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from truthgpt_serve.training.text.preferences.advantages import (
    CLIP_RANGE,
    estimate_advantages,
    masked_mean,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)

LENGTHS = (5, 1, 3)


@pytest.fixture
def mask() -> torch.Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).int()


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(len(LENGTHS), max(LENGTHS), generator=torch.Generator().manual_seed(seed))


def test_the_score_is_the_reward_of_the_last_token(mask: torch.Tensor) -> None:
    divergence, scores = drawn(1), torch.tensor([2.0, -3.0, 0.5])
    rewards = token_rewards(scores, divergence, mask, beta=0.1)
    for row, length in enumerate(LENGTHS):
        for at in range(max(LENGTHS)):
            expected = -0.1 * float(divergence[row, at]) if at < length else 0.0
            expected += float(scores[row]) if at == length - 1 else 0.0
            assert float(rewards[row, at]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 0.95, 1.0])
def test_an_advantage_is_the_weighted_sum_of_later_surprises(
    mask: torch.Tensor, gae_lambda: float
) -> None:
    rewards, values = drawn(1) * mask, drawn(2)
    advantages, returns = estimate_advantages(rewards, values, mask, gae_lambda)
    for row, length in enumerate(LENGTHS):
        known = [float(value) for value in values[row, :length]] + [0.0]
        surprises = [float(rewards[row, at]) + known[at + 1] - known[at] for at in range(length)]
        for at in range(length):
            expected = sum(
                gae_lambda**step * surprise for step, surprise in enumerate(surprises[at:])
            )
            assert float(advantages[row, at]) == pytest.approx(expected, abs=1e-5)
            assert float(returns[row, at]) == pytest.approx(expected + known[at], abs=1e-5)
        assert not advantages[row, length:].any()


def test_the_whole_reward_is_the_return_where_nothing_is_cut(mask: torch.Tensor) -> None:
    rewards = drawn(1) * mask
    _, returns = estimate_advantages(rewards, drawn(2), mask, 1.0)
    rest = rewards.flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(returns * mask, rest, atol=1e-5)


def test_whitened_advantages_have_mean_0_and_variance_1_over_all_workers(
    mask: torch.Tensor,
) -> None:
    both = [drawn(1), 3 + drawn(2)]
    sums = [torch.stack([(each * mask).sum(), mask.sum().float()]) for each in both]
    total = sum(sums)
    squares = sum((((each - total[0] / total[1]) ** 2) * mask).sum() for each in both)
    found = []
    for each, own in zip(both, sums, strict=True):
        added = {2: total, 0: squares}  # by the number of what each worker adds up
        asked: list[torch.Tensor] = []

        def add_up(part: torch.Tensor, asked: list[Any] = asked, added: Any = added) -> Any:
            asked.append(part)
            return added[part.numel() if part.dim() else 0]

        found.append(whiten(each, mask, add_up))
        assert torch.equal(asked[0], own)
    numbers = torch.cat([each[mask.bool()] for each in found])
    assert float(numbers.mean()) == pytest.approx(0, abs=1e-5)
    assert float(numbers.var(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert not found[0][mask == 0].any()


def test_the_policy_loss_has_no_gradient_beyond_the_clip_range() -> None:
    before = torch.zeros(1, 4)
    moved = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    losses = policy_losses(moved, before, advantages)
    expected = [-(1 + CLIP_RANGE), 1.5, -0.5, 1 - CLIP_RANGE]
    assert losses.tolist()[0] == pytest.approx(expected)
    losses.sum().backward()
    assert moved.grad is not None
    assert [bool(each) for each in moved.grad[0]] == [False, True, True, False]


def test_the_value_loss_is_that_of_the_worse_value() -> None:
    before, returns = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]])
    values = torch.tensor([[0.1, 0.9, 0.9]])
    losses = value_losses(values, before, returns).tolist()[0]
    assert losses == pytest.approx([0.5 * 0.9**2, 0.5 * (1 - CLIP_RANGE) ** 2, 0.5 * 1.9**2])


def test_a_mean_counts_tokens_of_answers_only(mask: torch.Tensor) -> None:
    numbers = torch.full((len(LENGTHS), max(LENGTHS)), 100.0).masked_fill(mask.bool(), 2.0)
    assert float(masked_mean(numbers, mask)) == 2.0
    assert float(masked_mean(numbers, torch.zeros_like(mask))) == 0.0
