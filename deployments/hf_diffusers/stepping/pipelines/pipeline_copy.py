"""Copies of a pipeline, one a job, that share its weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

PROGRESS_BAR_OFF: Mapping[str, Any] = {"disable": True}
DEVICE = "_truthgpt_device"


def clone_pipeline(
    pipeline: Any,
    proxies: Mapping[str, nn.Module],
    scheduler: Any,
    *,
    cpu_timesteps: bool,
    device: torch.device | None = None,
) -> Any:
    """Returns a shallow copy with proxies for modules and its own copy of all that steps change.

    Args:
        pipeline: A stock pipeline; left as it is.
        proxies: By component name.
        scheduler: Replaces the pipeline's; None keeps that. Either way the clone has a copy.
        cpu_timesteps: Whether the scheduler's timesteps stay on the CPU.
        device: Where the pipeline computes, as `find_device` found; None: the clone looks itself.
    """
    clone = copy.copy(pipeline)
    if device is not None:
        cls: Any = type(pipeline)
        clone.__class__ = _placed_class(cls)
        clone.__dict__[DEVICE] = device
    # Past `DiffusionPipeline.__setattr__`, which would write to the configuration the copies share.
    state = clone.__dict__
    state.update(proxies)
    for name, component in pipeline.components.items():
        if is_stateful(component):
            state[name] = copy.deepcopy(component)
    if scheduler is not None:
        state["scheduler"] = copy.deepcopy(scheduler)
    if cpu_timesteps and state.get("scheduler") is not None:
        keep_timesteps_on_cpu(state["scheduler"])
    state["maybe_free_model_hooks"] = _free_nothing
    state["_progress_bar_config"] = dict(PROGRESS_BAR_OFF)
    return clone


def find_device(pipeline: Any) -> torch.device | None:
    """Returns where a pipeline computes; None if it does not say.

    Diffusers looks for offloading hooks in every layer of every component, for each call of the
    pipeline: 8 ms for the small model that ships, in which no forward runs.
    """
    device = getattr(pipeline, "_execution_device", None)
    return device if isinstance(device, torch.device) else None


@functools.cache
def _placed_class(cls: Any) -> type:
    device = property(lambda self: self.__dict__[DEVICE])
    return type(cls.__name__, (cls,), {"_execution_device": device, "__module__": cls.__module__})


def is_stateful(component: Any) -> bool:
    """Whether denoising steps change the component: a scheduler or a guider."""
    if isinstance(component, nn.Module):
        return False
    return hasattr(component, "set_timesteps") or hasattr(component, "prepare_inputs")


def _free_nothing() -> None:
    """Stands for `maybe_free_model_hooks`, which would reset caches and hooks of shared modules."""


def keep_timesteps_on_cpu(scheduler: Any) -> None:
    """Makes a scheduler's `set_timesteps` put its timesteps on the CPU, whatever it is told."""
    cls: Any = type(scheduler)
    scheduler.__class__ = _cpu_class(cls)


@functools.cache
def _cpu_class(cls: Any) -> type:
    function = cls.set_timesteps

    # Pipelines read this method's signature to learn what it takes: `wraps` keeps it.
    @functools.wraps(function)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        return function(self, *map(_to_cpu, args), **kwargs)

    namespace = {"set_timesteps": set_timesteps, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), namespace)


def _to_cpu(value: Any) -> Any:
    is_device = isinstance(value, torch.device) or (
        isinstance(value, str) and value.startswith("cuda")
    )
    return torch.device("cpu") if is_device else value
