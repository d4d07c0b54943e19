"""Has all Gloo process groups of an engine on CPU share one network device.

An engine makes two process groups for each way to divide a model, 12 of them even when one process
runs all of it. By itself each opens a device, whose thread looks for news 100 times a second: 1 %
of a core, without a request.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

INTERFACES_VARIABLE = "GLOO_SOCKET_IFNAME"
"""Names the network interfaces that PyTorch opens devices for, with commas between them."""
_SHARED = "_truthgpt_devices"


def share() -> None:
    """Changes PyTorch's module of process groups in this process; a second call does nothing.

    Raises:
        RuntimeError: PyTorch moved what this changes.
    """
    from torch.distributed import distributed_c10d

    original: Any = getattr(distributed_c10d, "ProcessGroupGloo", None)
    if hasattr(original, _SHARED):
        return
    wanted = ("create_device", "create_default_device", "_Options")
    if missing := [name for name in wanted if not hasattr(original, name)]:
        raise RuntimeError(
            f"PyTorch's ProcessGroupGloo has no {' and no '.join(missing)}: adapt "
            "deployments/vllm/patches/gloo_device.py to this version, or install the pinned one"
        )
    _set(distributed_c10d, _sharing(original))


def _set(module: Any, value: type[Any]) -> None:
    module.ProcessGroupGloo = value


def _sharing(original: type[Any]) -> type[Any]:
    """Returns a class of process groups with the same devices for all of them."""

    class SharingGroup(original):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            if not getattr(SharingGroup, _SHARED):
                setattr(SharingGroup, _SHARED, _open_devices(original))
            options = original._Options()
            options._devices = getattr(SharingGroup, _SHARED)
            options._timeout = timeout
            super().__init__(store, rank, size, options)

    setattr(SharingGroup, _SHARED, [])
    return SharingGroup


def _open_devices(group: Any) -> list[Any]:
    """Returns the devices that PyTorch would open."""
    names = list(filter(None, os.environ.get(INTERFACES_VARIABLE, "").split(",")))
    devices = [group.create_device(interface=name) for name in names]
    return devices or [group.create_default_device()]
