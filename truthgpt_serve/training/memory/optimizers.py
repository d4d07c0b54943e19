"""The optimizers of `training.optimizer`: what each needs and keeps, and how it is made.

Imports a library that trains only to make one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.training.errors import TrainingError

PLACE = "training.optimizer"


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One value of `training.optimizer`.

    Attributes:
        trainer_name: The same in transformers' words, for `TrainingArguments.optim`.
        module: That has the class.
        class_name: Its name there.
        state_bytes: Memory that it keeps for each trained number.
        options: Arguments of the class beside the learning rate.
        needs_gpu: Whether it has nothing to offer without one.
    """

    trainer_name: str
    module: str
    class_name: str
    state_bytes: float
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    needs_gpu: bool = False

    @property
    def package(self) -> str:
        """The package that it comes from."""
        return self.module.partition(".")[0]


def _bitsandbytes(name: str, class_name: str, num_moments: int) -> Optimizer:
    bits, paged = (8 if name.endswith("8bit") else 32), name.startswith("paged")
    options = {"optim_bits": bits, "is_paged": paged, "betas": (0.9, 0.999)}
    return Optimizer(
        name,
        "bitsandbytes.optim",
        class_name,
        # Blocks of 256 numbers share a scale of float32.
        num_moments * (bits / 8 + (4 / 256 if bits == 8 else 0)),
        options,
        needs_gpu=paged,
    )


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer("adamw_torch_fused", "torch.optim", "AdamW", 8, {"fused": True}),
    "adamw_8bit": _bitsandbytes("adamw_8bit", "AdamW", 2),
    "adamw_torch_8bit": Optimizer("adamw_torch_8bit", "torchao.optim", "AdamW8bit", 2),
    "adamw_torch_4bit": Optimizer("adamw_torch_4bit", "torchao.optim", "AdamW4bit", 1),
    "paged_adamw_8bit": _bitsandbytes("paged_adamw_8bit", "AdamW", 2),
    "paged_adamw_32bit": _bitsandbytes("paged_adamw_32bit", "AdamW", 2),
    "lion": _bitsandbytes("lion_32bit", "Lion", 1),
    "lion_8bit": _bitsandbytes("lion_8bit", "Lion", 1),
    "paged_lion_8bit": _bitsandbytes("paged_lion_8bit", "Lion", 1),
    # Of a matrix it keeps sums of rows and columns.
    "adafactor": Optimizer(
        "adafactor",
        "transformers",
        "Adafactor",
        0.1,
        {"scale_parameter": False, "relative_step": False},
    ),
    "adagrad": Optimizer("adagrad", "torch.optim", "Adagrad", 4),
    "rmsprop": Optimizer("rmsprop", "torch.optim", "RMSprop", 4),
    "sgd": Optimizer("sgd", "torch.optim", "SGD", 0),
}


def check_optimizer(training: Mapping[str, Any], *, on_cpu: bool, place: str = PLACE) -> Optimizer:
    """Returns the optimizer of a run, after checking that this machine has what it needs.

    Args:
        training: The section of the configuration.
        on_cpu: Whether the run computes without a GPU.
        place: Of the setting, for the message.

    Raises:
        TrainingError: A package or the GPU is missing.
    """
    name = training["optimizer"]
    optimizer = OPTIMIZERS[name]
    if optimizer.needs_gpu and on_cpu:
        other = name.removeprefix("paged_").removesuffix("_32bit")
        message = f"{place}: {name} moves its memory between a GPU and the CPU, and there is no GPU"
        raise TrainingError(f"{message} (write {other})")
    if importlib.util.find_spec(optimizer.package) is None:
        package = optimizer.package
        message = f"{place}: {name} needs the package {package}, which is not installed"
        raise TrainingError(f"{message} (pip install {package})")
    return optimizer


def create_optimizer(
    training: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], *, on_cpu: bool
) -> Any:
    """Returns an optimizer of torch's interface, with the settings that transformers gives it.

    Args:
        training: The section of the configuration.
        groups: Of parameters, each with its `weight_decay`.
        on_cpu: Whether the parameters are on the CPU.

    Raises:
        TrainingError: See `check_optimizer`.
    """
    optimizer = check_optimizer(training, on_cpu=on_cpu)
    made: Any = getattr(importlib.import_module(optimizer.module), optimizer.class_name)
    return made(list(groups), lr=training["learning_rate"], **optimizer.options)


def state_bytes(training: Mapping[str, Any], num_trainable: int) -> int:
    """Returns the memory of an optimizer's own numbers for `num_trainable` trained ones."""
    return int(OPTIMIZERS[training["optimizer"]].state_bytes * num_trainable)
