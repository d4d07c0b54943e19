"""The `training` section: how `truthgpt train` fits a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from truthgpt_serve.config.base import (
    FUNCTION_PATTERN,
    Count,
    NonNegativeCount,
    NonNegativeNumber,
    PositiveNumber,
    Ratio,
    Refusal,
    Section,
    refuse,
)


def _read_precision(value: Any) -> Any:
    # YAML 1.1, which Ray reads a Serve file with, turns a bare `no` into False.
    return "no" if value is False else value


def _read_tracker(value: Any) -> Any:
    return "none" if value is None else value


Precision = Annotated[
    Literal["no", "fp16", "bf16"],
    BeforeValidator(_read_precision),
    # An editor that reads YAML 1.1 sees a bare `no` as false too.
    WithJsonSchema({"enum": ["no", "fp16", "bf16", False]}),
]


class TrainingSection(Section):
    """Hyperparameters of `truthgpt train`; serving ignores them."""

    method: Literal["sft", "dpo", "grpo"] = "sft"
    """How a text model learns: `sft` from texts, `dpo` from pairs of a chosen and a rejected
    answer, `grpo` from answers that it samples itself and `reward` scores. Images know only
    `sft`."""

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

    weight_decay: NonNegativeNumber = 0.0
    """Pull of the weights toward zero (AdamW). More keeps them smaller and fits less closely."""

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

    reward: Annotated[str, Field(pattern=FUNCTION_PATTERN)] | None = None
    """Reward function of `grpo` as `module:function`, found from the working directory too. It
    takes `prompts`, `completions` and the data's other columns as lists by keyword, and returns a
    number for each completion."""

    beta: NonNegativeNumber = 0.1
    """Weight of staying close to the model before training (`dpo`, `grpo`). More changes the model
    less; 0 in `grpo` leaves the comparison, and its memory, out."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers that `grpo` samples for each prompt and compares. More compares better and takes
    longer. The examples of an optimizer step must be a multiple of it."""

    max_new_tokens: Count = 256
    """Longest answer that `grpo` samples, in tokens. More takes more time and memory."""

    component: Literal["denoiser", "vae"] = "denoiser"
    """Part of an image model that is trained. `vae` trains the encoder and decoder of latents,
    which a model made from nothing needs first."""

    train_text_encoder: bool = False
    """Train the text encoder of an image model together with its denoiser. True takes more
    memory."""

    ema_decay: Annotated[Ratio, Field(lt=1)] = 0.0
    """Decay of the running average of an image model's weights, which is then the result; 0
    switches it off. More averages over more steps, and a second copy takes memory."""

    caption_dropout: Ratio = 0.0
    """Share of captions that an image model sees as empty, so that guidance works when it is
    served; 0.1 is usual for a model made from nothing. More weakens the captions."""

    min_snr_gamma: PositiveNumber | None = None
    """Bound of the signal-to-noise weight of an image model's loss, such as 5; null weighs all
    noise levels alike. More comes closer to null."""

    @model_validator(mode="after")
    def _check_reward(self) -> TrainingSection:
        found = []
        if self.method == "grpo" and self.reward is None:
            message = "is required by method: grpo"
            found.append(Refusal("reward", message, "write module:function", ("method",)))
        if self.method != "grpo" and self.reward is not None:
            message = f"is of no use to method: {self.method}"
            found.append(Refusal("reward", message, "remove it, or set method: grpo", ("method",)))
        if found:
            raise refuse(found)
        return self
