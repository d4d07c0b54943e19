"""trl's trainers with our checkpoints and monitor, and the arguments of each method."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.plan import StepCounts
from truthgpt_serve.training.text.arguments import trainer_arguments
from truthgpt_serve.training.text.models import is_on_cpu
from truthgpt_serve.training.text.preferences.experimental import load_orpo
from truthgpt_serve.training.text.preferences.groups import GroupTrainer
from truthgpt_serve.training.text.preferences.policy import PolicyTrainer
from truthgpt_serve.training.text.preferences.reward_model import load_reward_model
from truthgpt_serve.training.text.reward import load_reward
from truthgpt_serve.training.text.trainer import CourseTrainer
from truthgpt_serve.training.text.trainer.sharding import shard_model

with warnings.catch_warnings():
    # trl can sample with vLLM, which it is not asked to here, and warns of releases new to it.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
    from trl import (
        DPOConfig,
        DPOTrainer,
        GRPOConfig,
        KTOConfig,
        KTOTrainer,
        RewardConfig,
        RewardTrainer,
    )

_CHOSEN_MASKS = ("chosen_attention_mask", "rejected_attention_mask")


class PairTrainer(CourseTrainer, DPOTrainer):  # type: ignore[misc] # trl counts as Any
    """trl's DPO with our checkpoints and monitor."""


class AnswerTrainer(CourseTrainer, KTOTrainer):  # type: ignore[misc] # trl counts as Any
    """trl's KTO with our checkpoints and monitor."""


class ScoreTrainer(CourseTrainer, RewardTrainer):  # type: ignore[misc] # trl counts as Any
    """trl's trainer of reward models with our checkpoints and monitor."""

    merges_adapter = True


@cache
def _odds_trainer() -> tuple[Any, Any]:
    arguments, trainer = load_orpo()

    class OddsTrainer(CourseTrainer, trainer):  # type: ignore[misc,valid-type] # found by name
        """trl's ORPO with our checkpoints and monitor."""

        def count_units(self, batch: Any) -> int:
            """Returns the tokens of one batch, without padding."""
            return sum(int(batch[name].sum()) for name in _CHOSEN_MASKS)

    return arguments, OddsTrainer


Create = Callable[[TrainingJob, StepCounts, dict[str, Any]], Any]
"""Takes the job, its steps and what every trainer is given; returns the trainer."""


def create_dpo(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `dpo`."""
    return PairTrainer(args=_answer_arguments(DPOConfig, job, steps), **_with_copy(job, given))


def create_kto(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `kto`."""
    training = job.cfg["training"]
    weights = {name: training[name] for name in ("desirable_weight", "undesirable_weight")}
    arguments = _answer_arguments(KTOConfig, job, steps, **weights)
    return AnswerTrainer(args=arguments, **_with_copy(job, given))


def create_orpo(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `orpo`."""
    config_class, trainer_class = _odds_trainer()
    # It warns of this setting, which its own batches need.
    arguments = _answer_arguments(config_class, job, steps, remove_unused_columns=False)
    return trainer_class(args=arguments, **given)


def create_reward(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `reward`; the rows are cut already."""
    arguments = RewardConfig(max_length=None, **trainer_arguments(job, steps))
    return ScoreTrainer(args=arguments, **given)


def create_grpo(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `grpo`."""
    return GroupTrainer(args=_sampling_arguments(job, steps), **_with_reward(job, given))


def create_ppo(job: TrainingJob, steps: StepCounts, given: dict[str, Any]) -> Any:
    """Returns the trainer of `ppo`."""
    training = job.cfg["training"]
    # Dropout would make the same model give an answer two probabilities.
    more = {"num_iterations": training["num_ppo_epochs"], "disable_dropout": True}
    arguments = _sampling_arguments(job, steps, **more)
    own = {name: training[name] for name in ("gae_lambda", "vf_coef")}
    return PolicyTrainer(args=arguments, **own, **_with_reward(job, given))


def _sampling_arguments(job: TrainingJob, steps: StepCounts, **more: Any) -> Any:
    training = job.cfg["training"]
    return GRPOConfig(
        beta=training["beta"],
        num_generations=training["num_generations"],
        max_completion_length=training["max_new_tokens"],
        **trainer_arguments(job, steps),
        **more,
    )


def _with_reward(job: TrainingJob, given: dict[str, Any]) -> dict[str, Any]:
    """Adds what scores sampled answers."""
    training = job.cfg["training"]
    given.pop("eval_dataset")
    given["processing_class"].padding_side = "left"  # answers are sampled from the prompts' ends
    if training["reward"] is not None:
        return {**given, "reward_funcs": load_reward(training["reward"])}
    model, tokenizer = load_reward_model(job.cfg)
    return {**given, "reward_funcs": model, "reward_processing_classes": tokenizer}


def _answer_arguments(config_class: Any, job: TrainingJob, steps: StepCounts, **more: Any) -> Any:
    return config_class(
        beta=job.cfg["training"]["beta"],
        max_length=job.cfg["data"]["max_seq_len"],
        **trainer_arguments(job, steps),
        **more,
    )


def _with_copy(job: TrainingJob, given: dict[str, Any]) -> dict[str, Any]:
    """Adds the model to compare with; with an adapter it is the model without it."""
    has_adapter = given["peft_config"] or hasattr(given["model"], "peft_config")
    other = None if has_adapter else copy.deepcopy(given["model"])
    if other is not None:
        shard_model(other, job.cfg["training"], on_cpu=is_on_cpu(job.cfg))
    return {**given, "ref_model": other}


CREATE: dict[str, Create] = {
    "dpo": create_dpo,
    "kto": create_kto,
    "orpo": create_orpo,
    "reward": create_reward,
    "grpo": create_grpo,
    "ppo": create_ppo,
}
"""By `training.method`."""
