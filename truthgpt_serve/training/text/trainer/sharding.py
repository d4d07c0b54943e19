"""Weights, gradients and optimizer state split over the workers: torch's `fully_shard`.

Holds all that is not public API of transformers: that its `Trainer` leaves a model alone that is
distributed already. accelerate's own plugin would split nothing on CPU, and say nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from truthgpt_serve.training.errors import TrainingError, one_line
from truthgpt_serve.training.run_folder import SHARDS

_LEFT_ALONE = "_is_distributed_loading_by_transformers"
"""Of a model of transformers: its `Trainer` neither moves nor wraps it."""


def shard_model(model: Any, training: Mapping[str, Any], *, on_cpu: bool) -> None:
    """Splits a model's weights over the workers, in place, where `training.fsdp` says so.

    Each repeated layer is gathered when it computes, and the rest for the whole step.

    Args:
        model: A model of transformers, perhaps with an adapter, as a whole in each worker.
        training: The section of the configuration.
        on_cpu: Whether the workers compute on CPU.

    Raises:
        TrainingError: The model's layers cannot be split.
    """
    if training["fsdp"] is None:
        return
    options: dict[str, Any] = {
        "mesh": init_device_mesh(
            "cpu" if on_cpu else "cuda", (torch.distributed.get_world_size(),)
        ),
        "reshard_after_forward": training["fsdp"] == "full",
    }
    if training["mixed_precision"] == "bf16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for layer in _repeated_layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)


def leave_to_us(model: Any) -> None:
    """Has the `Trainer` of transformers neither move nor wrap a model, which will be sharded.

    Raises:
        TrainingError: This version of transformers does not know how.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if not hasattr(base, _LEFT_ALONE):
        raise _moved(f"its models have no {_LEFT_ALONE}")
    setattr(base, _LEFT_ALONE, True)


def _repeated_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost layers that a model has in lists, such as those of a decoder."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            yield from child
        else:
            yield from _repeated_layers(child)


def gathered_bytes(model: nn.Module, training: Mapping[str, Any]) -> int:
    """Returns the bytes of weights that each worker holds as a whole beside its share.

    Of `full` those are two layers, one of them fetched in advance, and what is in no list of them.
    """
    if training["fsdp"] is None:
        return 0
    whole, layers = _bytes_of(model), [_bytes_of(layer) for layer in _repeated_layers(model)]
    if training["fsdp"] != "full" or not layers:
        return whole
    return whole - sum(layers) + 2 * max(layers)


def _bytes_of(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def is_sharded(model: Any) -> bool:
    """Returns whether a model's weights are split over the workers."""
    return isinstance(model, FSDPModule)


def check_unwrapped(model: Any, wrapped: Any) -> None:
    """Checks that a trainer has left a sharded model as it is.

    Raises:
        TrainingError: It copies gradients as well, as for a model that is not split.
    """
    if is_sharded(model) and isinstance(wrapped, DistributedDataParallel):
        raise _moved("its Trainer wraps a sharded model")


def _moved(what: str) -> TrainingError:
    import transformers

    version, fix = transformers.__version__, "remove it, or install the version of pyproject.toml"
    return TrainingError(f"training.fsdp: transformers {version} is not supported: {what} ({fix})")


def local_part(weight: torch.Tensor) -> torch.Tensor:
    """Returns the part of a weight that this worker holds: all of it, if it is not split."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def full_state(model: Any) -> dict[str, Any]:
    """Returns the weights as a whole, in main memory: on rank 0, and else nothing.

    To be called on every worker. Weights are gathered one by one; an adapter's without its base.
    """
    options = StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=hasattr(model, "peft_config"),
    )
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    return state


def save_shards(folder: Path, model: Any, optimizer: Any) -> None:
    """Writes what this worker holds of trained weights and optimizer; for every worker."""
    weights, state = get_state_dict(model, _inner(optimizer), options=_TRAINED)
    with _ordinary_faults():
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / SHARDS)


def load_weights(folder: Path, model: Any) -> None:
    """Reads the weights of a checkpoint of any number of workers; for every worker."""
    weights = get_model_state_dict(model, options=_TRAINED)
    with _ordinary_faults():
        dcp.load({"model": weights}, checkpoint_id=folder / SHARDS)
    set_model_state_dict(model, weights, options=_TRAINED)


def load_optimizer(folder: Path, model: Any, optimizer: Any) -> None:
    """Reads the optimizer of a checkpoint of any number of workers; for every worker."""
    state = get_optimizer_state_dict(model, _inner(optimizer), options=_TRAINED)
    with _ordinary_faults():
        dcp.load({"optimizer": state}, checkpoint_id=folder / SHARDS)
    set_optimizer_state_dict(model, _inner(optimizer), state, options=_TRAINED)


@contextmanager
def _ordinary_faults() -> Iterator[None]:
    """Makes a `RuntimeError` of torch's fault of a checkpoint, which is no `Exception`."""
    try:
        yield
    except CheckpointException as error:
        found = [f"worker {rank}: {one_line(fault)}" for rank, (fault, _) in error.failures.items()]
        raise RuntimeError("; ".join(found)) from error


_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


def _inner(optimizer: Any) -> Any:
    """Returns torch's optimizer in accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)
