from __future__ import annotations

from typing import Any, get_args

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.config.training import METHODS, TrainingSection
from truthgpt_serve.config.training.methods import (
    keeps_copy,
    passes_per_answer,
    rows_per_example,
)
from truthgpt_serve.errors import ConfigError

NEEDED: dict[str, Any] = {"reward": "rewards:count"}


def given(method: str, **more: Any) -> dict[str, Any]:
    needed = {key: NEEDED[key] for key in METHODS[method].needs_one_of[:1]}
    return {"method": method, **needed, **more}


def test_the_table_has_each_method_and_only_keys_of_the_section() -> None:
    assert list(METHODS) == list(get_args(TrainingSection.model_fields["method"].annotation))
    for name, method in METHODS.items():
        assert set(method.needs_one_of) <= method.settings, name
        assert method.settings <= TrainingSection.model_fields.keys(), name


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_accepted_with_what_it_needs(method: str) -> None:
    assert load_model_config({"training": given(method)}).training.method == method


@pytest.mark.parametrize(
    ("training", "key", "message"),
    [
        ({"method": "sft", "beta": 0.2}, "beta", "(remove it, or set method: "),
        ({"method": "sft", "reward": "a:b"}, "reward", "is of no use to method: sft"),
        ({"method": "dpo", "max_new_tokens": 8}, "max_new_tokens", "is of no use to method: dpo"),
        (
            {"method": "grpo", "reward": "a:b", "reward_model": "org/model"},
            "reward_model",
            "is given together with reward",
        ),
        (
            {"method": "grpo"},
            "reward",
            "is required by method: grpo (write module:function or set reward_model)",
        ),
    ],
)
def test_settings_that_do_not_fit_the_method_are_refused(
    training: dict[str, Any], key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config({"training": training}, place="test")
    assert f"test: training.{key}: " in str(caught.value)
    assert message in str(caught.value)


def test_the_table_says_what_a_method_takes() -> None:
    def section(method: str, **more: Any) -> dict[str, Any]:
        cfg = load_model_config({"training": given(method, **more)}).to_cfg()
        section: dict[str, Any] = cfg["training"]
        return section

    assert [keeps_copy(section(name)) for name in ("sft", "dpo", "grpo")] == [False, True, True]
    assert not keeps_copy(section("grpo", beta=0.0))
    assert rows_per_example(section("grpo", num_generations=4)) == 4
    assert rows_per_example(section("dpo")) == 1
    assert passes_per_answer(section("ppo", num_ppo_epochs=3)) == 3
    assert passes_per_answer(section("grpo")) == 1
