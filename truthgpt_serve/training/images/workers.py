"""Sets up accelerate for one worker among several.

Whoever starts the workers sets up `torch.distributed`, and says by environment variables which GPU
is whose; accelerate takes both over.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import numpy as np
import torch
import torch.distributed as distributed
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from truthgpt_serve.training.errors import TrainingError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def open_accelerator(cfg: dict[str, Any], *, find_unused: bool = False) -> Any:
    """Returns an Accelerator for this worker, and seeds the global generators.

    Args:
        cfg: The configuration.
        find_unused: Whether some trained weights may stay out of the loss.

    Raises:
        TrainingError: The device does not compute in the format of `training.mixed_precision`.
    """
    hardware, training = cfg["hardware"], cfg["training"]
    on_cpu = (
        hardware["device"] == "cpu"
        or hardware["gpus"] == 0
        # What Ray Train gave this worker; it may see GPUs that are not its own.
        or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"
        or not torch.cuda.is_available()
    )
    _check_precision(training["mixed_precision"], on_cpu=on_cpu)
    with _variables():
        accelerator = accelerate.Accelerator(
            cpu=on_cpu,
            mixed_precision=training["mixed_precision"],
            gradient_accumulation_steps=training["grad_accum_steps"],
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, find_unused_parameters=find_unused
                )
            ],
        )
    # What a model draws itself, such as dropout; each worker has other examples, so other draws.
    seed = (cfg["seed"] + accelerator.process_index) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return accelerator


def _check_precision(name: str, *, on_cpu: bool) -> None:
    if name == "fp16" and on_cpu:
        message = "training.mixed_precision: fp16 needs a GPU, and the model is trained on CPU"
        raise TrainingError(f"{message} (write bf16 or no)")
    if name == "bf16" and not on_cpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return
        message = "training.mixed_precision: this GPU does not compute in bf16"
        raise TrainingError(f"{message} (write fp16 or no)")


@contextmanager
def _variables() -> Iterator[None]:
    """Makes the environment say what `torch.distributed` says, while accelerate reads it.

    For a single worker it says nothing: accelerate would wrap the model for several.
    """
    before = {name: os.environ.get(name) for name in _VARIABLES}
    several = distributed.is_initialized() and distributed.get_world_size() > 1
    if several:
        rank, size = str(distributed.get_rank()), str(distributed.get_world_size())
        os.environ |= {"RANK": rank, "WORLD_SIZE": size}
        os.environ.setdefault("LOCAL_RANK", rank)
        os.environ.setdefault("LOCAL_WORLD_SIZE", size)
    else:
        for name in _VARIABLES:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def generator_states(accelerator: Any) -> list[dict[str, Any]]:
    """Returns the states of the global generators of all workers, by rank."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": None,
    }
    if accelerator.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    gathered: list[dict[str, Any]] = gather_object([state])
    return gathered


def restore_generators(states: list[dict[str, Any]], accelerator: Any) -> None:
    """Puts this worker's generators back to a state that `generator_states` returned.

    A worker that was not there then keeps its fresh ones.
    """
    if accelerator.process_index >= len(states):
        return
    state = states[accelerator.process_index]
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], accelerator.device)
