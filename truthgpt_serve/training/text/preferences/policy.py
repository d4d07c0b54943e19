"""`ppo`: trl's sampling of answers with a value for each token, and PPO's losses.

trl has no PPO any more. What samples and scores answers is its GRPO, which takes an advantage for
each token from those who build on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from truthgpt_serve.training.text.preferences.advantages import (
    CLIP_RANGE,
    estimate_advantages,
    masked_mean,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)
from truthgpt_serve.training.text.preferences.groups import GroupTrainer
from truthgpt_serve.training.text.preferences.value_head import ValueHead, ValueHeadSync

_KEPT = "answers-{}.pt"
"""The sampled answers that a worker still learns from, in a checkpoint."""


class PolicyTrainer(GroupTrainer):
    """PPO with our checkpoints and monitor.

    Args:
        gae_lambda: See `estimate_advantages`.
        vf_coef: Weight of the values' loss.
        **given: trl's, for `GRPOTrainer`.
    """

    def __init__(self, *, gae_lambda: float, vf_coef: float, **given: Any) -> None:
        super().__init__(**given)
        self._gae_lambda, self._vf_coef = gae_lambda, vf_coef
        self._scores = torch.zeros(0)
        self._head = ValueHead(self.accelerator.unwrap_model(self.model))
        self._head.to(self.accelerator.device)
        self.add_callback(ValueHeadSync(self._head, self.accelerator))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Has the optimizer of the model learn the values too."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            weights = list(self._head.parameters())
            optimizer.add_param_group({"params": weights, "weight_decay": 0.0})
        return optimizer

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        """Remembers the scores of this worker's answers; trl compares them within their group."""
        found = super()._calculate_rewards(*args, **kwargs)
        number = len(found) // self.accelerator.num_processes
        first = self.accelerator.process_index * number
        self._scores = found[first : first + number].nansum(dim=1)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """Adds an advantage for each token, its return, and what they were computed from."""
        found = super()._generate_and_score_completions(inputs)
        mask = found["completion_mask"]
        with torch.no_grad():
            log_probs, values = self._look(self.model, found)
        before = found.pop("ref_per_token_logps", log_probs)
        divergence = log_probs - before
        rewards = token_rewards(self._scores, divergence, mask, self.beta)
        advantages, returns = estimate_advantages(rewards, values, mask, self._gae_lambda)
        add_up = self.accelerator.reduce
        found["advantages"] = whiten(advantages, mask, add_up)
        found |= {"returns": returns, "old_values": values, "old_per_token_logps": log_probs}
        self._note("kl", (divergence * mask).sum(dim=1).mean())
        return found

    def _look(self, model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the log probabilities of the answers' tokens, and their values."""
        num_tokens = batch["completion_ids"].shape[1]
        with self._head.watching() as hidden:
            log_probs, *_ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
                torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
                num_tokens,
                batch_size=self.args.per_device_train_batch_size,
            )
        return log_probs, self._head.values_of(hidden, num_tokens)

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        """Returns PPO's loss of a batch, divided by the batches of a step, as trl expects it."""
        mask, before = inputs["completion_mask"], inputs["old_per_token_logps"]
        log_probs, values = self._look(model, inputs)
        policy = masked_mean(policy_losses(log_probs, before, inputs["advantages"]), mask)
        value = masked_mean(value_losses(values, inputs["old_values"], inputs["returns"]), mask)
        moved = (torch.exp(log_probs.detach() - before) - 1).abs() > CLIP_RANGE
        self._note("policy_loss", policy)
        self._note("value_loss", value)
        self._note("clip_ratio", masked_mean(moved.float(), mask))
        loss: torch.Tensor = policy + self._vf_coef * value
        return loss / self.current_gradient_accumulation_steps

    def _note(self, name: str, number: torch.Tensor) -> None:
        mean = self.accelerator.gather(number.detach()).mean()
        self._metrics["train" if self.model.training else "eval"][name].append(mean.item())

    def _write_checkpoint(self, folder: str) -> None:
        super()._write_checkpoint(folder)
        if self.args.should_save:
            self._head.save(Path(folder))
        torch.save(self._buffered_inputs, Path(folder) / _KEPT.format(self.args.process_index))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Reads what only this trainer has, too: a run may go on between two samplings."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._head.load(Path(checkpoint))
            kept = Path(checkpoint) / _KEPT.format(self.args.process_index)
            device = self.accelerator.device
            self._buffered_inputs = torch.load(kept, map_location=device, weights_only=True)
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            self._step = state.global_step * self.args.gradient_accumulation_steps
