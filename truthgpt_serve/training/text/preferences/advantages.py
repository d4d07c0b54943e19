"""What `ppo` computes from rewards and values: advantages, returns and its two losses.

All tensors have the shape (answers, tokens) and are padded on the right; `mask` is 1 for tokens of
the answer. After Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
Estimation" and "Proximal Policy Optimization Algorithms".
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CLIP_RANGE = 0.2
"""How far the probability ratio, and a value, may move from the sampled answers before the loss has
no gradient; trl's and the paper's default."""
_TINY = 1e-8


def token_rewards(
    scores: torch.Tensor, divergence: torch.Tensor, mask: torch.Tensor, beta: float
) -> torch.Tensor:
    """Returns the reward of each token: minus what it moved, and the score at the last one.

    Args:
        scores: Of the answers; shape (answers,).
        divergence: Log probability of each token minus that before training.
        mask: Tokens of the answers.
        beta: Weight of the divergence.
    """
    rewards = -beta * divergence * mask
    last = mask.sum(dim=1).long().clamp(min=1) - 1
    rewards[torch.arange(len(scores), device=rewards.device), last] += scores.to(rewards.dtype)
    return rewards


def estimate_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gae_lambda: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the advantage of each token and the return that its value should have been.

    Rewards are not discounted: an answer is short, and only its end is scored.

    Args:
        rewards: Of each token.
        values: What was expected before it.
        mask: Tokens of the answers.
        gae_lambda: How much of later surprises a token is credited with, from 0 to 1.
    """
    values = values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    surprises = (rewards + following - values) * mask
    advantages = torch.zeros_like(values)
    later = torch.zeros_like(values[:, 0])
    for at in reversed(range(values.shape[1])):
        later = surprises[:, at] + gae_lambda * later
        advantages[:, at] = later
    advantages = advantages * mask
    return advantages, advantages + values


def whiten(
    advantages: torch.Tensor, mask: torch.Tensor, add_up: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Returns advantages with mean 0 and variance 1 over the tokens of all workers.

    Args:
        advantages: Of each token.
        mask: Tokens of the answers.
        add_up: Returns the sum of a tensor over all workers.
    """
    total, count = add_up(torch.stack([(advantages * mask).sum(), mask.sum().to(advantages)]))
    mean = total / count.clamp(min=1)
    variance = add_up(((advantages - mean) ** 2 * mask).sum()) / count.clamp(min=1)
    return (advantages - mean) * torch.rsqrt(variance + _TINY) * mask


def policy_losses(
    log_probs: torch.Tensor, before: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """Returns the clipped loss of each token.

    Args:
        log_probs: Of the tokens, by the model that learns.
        before: Of the tokens, when they were sampled.
        advantages: Of the tokens.
    """
    ratio = torch.exp(log_probs - before)
    clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def value_losses(values: torch.Tensor, before: torch.Tensor, returns: torch.Tensor) -> torch.Tensor:
    """Returns half the clipped squared error of each token's value.

    Args:
        values: By the model that learns.
        before: When the answers were sampled.
        returns: What they should be.
    """
    clipped = before + (values - before).clamp(-CLIP_RANGE, CLIP_RANGE)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)


def masked_mean(numbers: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean over the tokens of answers."""
    return (numbers * mask).sum() / mask.sum().clamp(min=1)
