"""What `training.fsdp` does not go with."""

from __future__ import annotations

from collections.abc import Iterator

from truthgpt_serve.config.base import Refusal
from truthgpt_serve.config.sections import ModelOptimSection
from truthgpt_serve.config.training.methods import METHODS
from truthgpt_serve.config.training.section import TrainingSection

OPTIMIZERS = ("adamw", "adagrad", "rmsprop", "sgd")
"""Those that treat each number alike, however a matrix is split."""
_KEY = "training.fsdp"


def sharding_refusals(
    task: str, training: TrainingSection, optim: ModelOptimSection
) -> Iterator[Refusal]:
    """Yields the settings of a configuration whose weights cannot be sharded."""
    if training.fsdp is None:
        return
    method = METHODS[training.method]
    if task not in method.tasks:
        message = f"does not shard models of task: {task}"
        yield Refusal(_KEY, message, "remove it; each worker holds such a model", ("task",))
        return
    if method.samples:
        message = f"has no effect on method: {training.method}, which samples answers"
        fix = "remove it, and save memory by model_optim.lora.enabled"
        yield Refusal(_KEY, message, fix, ("training.method",))
    if optim.lora.enabled and method.head != "language":
        message = f"is not for adapters of method: {training.method}, which are merged in the end"
        uses = ("training.method", "model_optim.lora.enabled")
        yield Refusal(_KEY, message, "remove it; an adapter takes little", uses)
    if training.optimizer not in OPTIMIZERS:
        message = f"{training.optimizer} does not work on sharded weights (training.fsdp)"
        fix = f"write {', '.join(OPTIMIZERS[:-1])} or {OPTIMIZERS[-1]}"
        yield Refusal("training.optimizer", message, fix, (_KEY,))
    if training.mixed_precision == "fp16":
        message = "fp16 does not work on sharded weights (training.fsdp)"
        yield Refusal("training.mixed_precision", message, "write bf16 or no", (_KEY,))
    if optim.quantization is not None:
        message = "quantized weights are not sharded (training.fsdp)"
        yield Refusal("model_optim.quantization", message, f"remove it, or {_KEY}", (_KEY,))
    if training.samples is not None:
        message = "a sharded model makes no samples (training.fsdp)"
        yield Refusal("training.samples", message, f"remove it, or {_KEY}", (_KEY,))
    if optim.compile:
        message = "a sharded model is not compiled (training.fsdp)"
        yield Refusal("model_optim.compile", message, f"remove it, or {_KEY}", (_KEY,))
