"""Settings of the `training` section that every method reads: steps, rates and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

from truthgpt_serve.config.base import (
    Count,
    NonNegativeCount,
    NonNegativeNumber,
    PositiveNumber,
    Ratio,
    Section,
)


def _read_precision(value: Any) -> Any:
    # YAML 1.1, which Ray reads a Serve file with, turns a bare `no` into False.
    return "no" if value is False else value


def _read_sharding(value: Any) -> Any:
    return {True: "full", False: None}[value] if isinstance(value, bool) else value


def _read_tracker(value: Any) -> Any:
    return "none" if value is None else value


Precision = Annotated[
    Literal["no", "fp16", "bf16"],
    BeforeValidator(_read_precision),
    # An editor that reads YAML 1.1 sees a bare `no` as false too.
    WithJsonSchema({"enum": ["no", "fp16", "bf16", False]}),
]

Sharding = Annotated[
    Literal["full", "grad_op"] | None,
    BeforeValidator(_read_sharding),
    WithJsonSchema({"enum": ["full", "grad_op", True, False, None]}),
]

OptimizerName = Literal[
    "adamw",
    "adamw_8bit",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion",
    "lion_8bit",
    "paged_lion_8bit",
    "adafactor",
    "adagrad",
    "rmsprop",
    "sgd",
]


class Schedule(Section):
    """How long and how fast a model learns, and what is kept of it."""

    method: Literal[
        "sft", "dpo", "kto", "orpo", "reward", "grpo", "ppo", "embedding", "classification"
    ] = "sft"
    """How a model learns: `sft` from texts, `dpo` and `orpo` from pairs of a chosen and a rejected
    answer, `kto` from single answers that are good or bad, `grpo` and `ppo` from answers that
    they sample and a reward scores. `reward` makes a model that scores answers, of pairs;
    `embedding` one that places texts by their meaning; `classification` one that tells classes of
    texts apart. Images know only `sft`."""

    loss_on: Literal["assistant", "all"] = "assistant"
    """What `sft` learns of a chat, or of a prompt with its completion: every turn of the
    `assistant`, calls of functions included, or `all` of it. Plain texts are learned whole."""

    epochs: Count = 3
    """Passes over the training data. More fits it closer and takes proportionally longer."""

    max_steps: Count | None = None
    """Optimizer steps after which training ends, whatever `epochs` says. Null runs all epochs."""

    train_batch_size: Count = 8
    """Examples per device and forward pass. More uses more memory and gives steadier gradients."""

    eval_batch_size: Count = 8
    """Examples per device while evaluating. More is faster until memory ends."""

    grad_accum_steps: Count = 2
    """Forward passes per optimizer step. More raises the effective batch without more memory."""

    learning_rate: PositiveNumber = 5.0e-5
    """Peak step size of the optimizer. More learns faster until it diverges."""

    optimizer: OptimizerName = "adamw"
    """How gradients become steps. `adamw` keeps 8 bytes for each trained number, the 8-bit ones 2,
    `adafactor` and `sgd` next to none. `adamw_8bit` and `lion` come with the package bitsandbytes,
    as do the `paged_` ones, which move to CPU memory what a full GPU cannot hold;
    `adamw_torch_8bit` and `adamw_torch_4bit` with torchao."""

    weight_decay: NonNegativeNumber = 0.0
    """Pull of the weights toward zero. More keeps them smaller and fits less closely."""

    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = (
        "cosine"
    )
    """How the learning rate falls after the warm-up."""

    warmup_ratio: Ratio = 0.06
    """Share of all steps, from 0 to 1, in which the learning rate rises from zero. More is
    steadier at the start and leaves fewer steps at full rate."""

    mixed_precision: Precision = "bf16"
    """Number format of the forward and backward pass; `no` computes in float32. `fp16` scales the
    loss and needs a GPU."""

    fsdp: Sharding = None
    """How several workers share what a text model takes (fully sharded data parallel). `full`, or
    true, has each hold its part of weights, gradients and optimizer, and gathers a layer when it
    computes; `grad_op` gathers each layer once a step, which is faster and takes the memory of the
    weights. Null has each hold all."""

    max_grad_norm: NonNegativeNumber = 1.0
    """Norm to which gradients are clipped; 0 switches clipping off. More clips less."""

    early_stopping_patience: NonNegativeCount = 2
    """Evaluations without improvement after which training stops; 0 never stops early. More
    trains longer on a plateau. Above 0 the model of the best evaluation is the result."""

    eval_every: Count | None = None
    """Optimizer steps between evaluations, where `data` gives something to evaluate on. Null
    evaluates after each epoch. More evaluates less often."""

    checkpoint_every: Count = 500
    """Optimizer steps between checkpoints. More loses more work when the run is killed, and saves
    time and wear of the disk."""

    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept; the best evaluated one stays besides. More takes more
    disk."""

    log_every: Count = 10
    """Optimizer steps between the points of the tracker's curves. More makes smaller logs."""

    tracker: Annotated[Literal["tensorboard", "wandb", "none"], BeforeValidator(_read_tracker)] = (
        "tensorboard"
    )
    """Where the curves go: `tensorboard` writes into the run's `logs/`, `wandb` to Weights &
    Biases (its own package and account), `none` nowhere."""
