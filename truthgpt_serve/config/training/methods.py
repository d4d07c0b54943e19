"""The methods by which a model learns: what each reads, and what it takes while it trains.

Whoever must tell methods apart asks this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Rows = Literal["tokens", "pairs", "comparisons", "answers", "prompts", "sentences", "classes"]
"""What a row of data becomes: token ids with labels; a prompt with a chosen and a rejected answer,
as texts or as token ids; a prompt with one answer and whether it is good; a prompt with the row's
other columns; texts that are to be near each other or not; or a text with its class."""

Head = Literal["language", "score", "classes", "none"]
"""What stands on the layers of a model: the output of tokens, of one number, of a number for each
class, or nothing."""

TEXT = ("text-generation",)


@dataclass(frozen=True, slots=True)
class Method:
    """What sets one method apart from the others.

    Attributes:
        rows: What a row of data becomes.
        settings: Keys of the `training` section that only this method, or few, read.
        needs_one_of: Those of them of which exactly one must be given.
        tasks: Values of `task` whose models it trains; image models are trained by `sft` too.
        head: What the trained model ends with.
        evaluates: Whether it has a loss on data that it does not learn from.
        samples: Whether the model makes answers while it trains.
        copies: When a copy of the model before training is kept to compare with: `beta` where
            `training.beta` is above 0. An adapter needs none.
        num_sequences: Sequences of a forward pass that one example becomes.
        packs: Whether `data.pack` may join examples.
    """

    rows: Rows
    settings: frozenset[str] = frozenset()
    needs_one_of: tuple[str, ...] = ()
    tasks: tuple[str, ...] = TEXT
    head: Head = "language"
    evaluates: bool = True
    samples: bool = False
    copies: Literal["never", "always", "beta"] = "never"
    num_sequences: int = 1
    packs: bool = False


METHODS: dict[str, Method] = {
    "sft": Method("tokens", packs=True),
    "dpo": Method("pairs", frozenset({"beta"}), copies="always", num_sequences=2),
    "kto": Method(
        "answers",
        frozenset({"beta", "desirable_weight", "undesirable_weight"}),
        copies="always",
    ),
    "orpo": Method("pairs", frozenset({"beta"}), num_sequences=2),
    "reward": Method("comparisons", tasks=(*TEXT, "custom"), head="score", num_sequences=2),
    "grpo": Method(
        "prompts",
        frozenset({"beta", "max_new_tokens", "num_generations", "reward", "reward_model"}),
        needs_one_of=("reward", "reward_model"),
        evaluates=False,
        samples=True,
        copies="beta",
    ),
    "ppo": Method(
        "prompts",
        frozenset(
            {
                "beta",
                "gae_lambda",
                "max_new_tokens",
                "num_generations",
                "num_ppo_epochs",
                "reward",
                "reward_model",
                "vf_coef",
            }
        ),
        needs_one_of=("reward", "reward_model"),
        evaluates=False,
        samples=True,
        copies="beta",
    ),
    "embedding": Method(
        "sentences",
        frozenset({"embedding_loss", "pooling", "similarity_scale", "triplet_margin"}),
        tasks=("embedding",),
        head="none",
        num_sequences=3,
    ),
    "classification": Method("classes", tasks=("custom",), head="classes"),
}
"""By `training.method`."""
OWN_SETTINGS = frozenset(name for method in METHODS.values() for name in method.settings)
"""Keys of the `training` section that some methods do not read."""


def method_of(cfg: Mapping[str, Any]) -> Method:
    """Returns the method of a whole configuration."""
    return METHODS[cfg["training"]["method"]]


def keeps_copy(training: Mapping[str, Any]) -> bool:
    """Returns whether whole weights are trained beside a copy of them as they were before."""
    copies = METHODS[training["method"]].copies
    return copies == "always" or (copies == "beta" and bool(training["beta"]))


def rows_per_example(training: Mapping[str, Any]) -> int:
    """Returns how many rows of a batch one example becomes: the answers that are sampled for it."""
    grouped = "num_generations" in METHODS[training["method"]].settings
    return int(training["num_generations"]) if grouped else 1


def passes_per_answer(training: Mapping[str, Any]) -> int:
    """Returns how often sampled answers are learned from before others are sampled."""
    repeats = "num_ppo_epochs" in METHODS[training["method"]].settings
    return int(training["num_ppo_epochs"]) if repeats else 1
