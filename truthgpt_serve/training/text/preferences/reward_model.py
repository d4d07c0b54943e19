"""Finds the model that scores sampled answers in place of a function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.text.reward import load_reward


def check_scorer(cfg: Mapping[str, Any]) -> None:
    """Checks that what scores answers can be found, without loading a model.

    Raises:
        TrainingError: It cannot.
    """
    training = cfg["training"]
    if training["reward"] is not None:
        load_reward(training["reward"])
    if training["reward_model"] is not None:
        _reward_config(training["reward_model"])


def load_reward_model(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the model of `training.reward_model`, ready to score, and its tokenizer.

    Raises:
        TrainingError: It cannot be loaded, or gives more than one number.
    """
    name = cfg["training"]["reward_model"]
    config = _reward_config(name)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(name, config=config)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unusable(name, str(error).strip().splitlines()[0]) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval().requires_grad_(False), tokenizer


def _reward_config(name: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(name, str(error).strip().splitlines()[0]) from error
    classes = [c for c in config.architectures or () if c.endswith("ForSequenceClassification")]
    if config.num_labels != 1 or not classes:
        raise _unusable(name, "it gives no single score")
    return config


def _unusable(name: str, problem: str) -> TrainingError:
    fix = "name the result of a run with method: reward"
    return TrainingError(f"training.reward_model {name!r} cannot score answers: {problem} ({fix})")
