"""Stand-ins for a pipeline's modules: calling one inside a job waits for the engine instead.

It hands over the arguments and returns what it is handed back.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import greenlet
import torch
from torch import nn

from deployments.hf_diffusers.stepping.errors import NeedsExclusive

MUTATORS = (
    "set_attn_processor",
    "set_default_attn_processor",
    "set_attention_backend",
    "fuse_qkv_projections",
    "unfuse_qkv_projections",
    "enable_cache",
    "disable_cache",
    "enable_freeu",
    "disable_freeu",
)
"""Methods that change a module for everybody."""

CASTS = ("to", "half", "float", "double", "bfloat16", "cuda", "cpu", "type")
"""Methods that move or convert a module; pipelines call them around a VAE."""

Park = Callable[[Any, str, tuple[Any, ...], dict[str, Any]], Any]
"""Takes the scheduled job, the method's name and its arguments; returns or raises the outcome."""


class JobGreenlet(greenlet.greenlet):
    """The greenlet in which one job's pipeline runs; how a proxy finds its job."""

    scheduled: Any
    """What `park` is told; proxies do not look into it."""


def create_proxy(module: nn.Module, methods: tuple[str, ...], park: Park) -> nn.Module:
    """Returns an object that is `module` in all but its calls.

    It shares the module's `__dict__` and is an instance of a subclass of its class, so that
    `isinstance`, `.config`, `.dtype` and parameters work as before. Inside a job its `methods` go
    to `park`, methods that change the module make the job run exclusively, and conversions do
    nothing. Outside a job it behaves as the module.
    """
    cls: Any = type(module)
    namespace: dict[str, Any] = {"__module__": cls.__module__, "__doc__": cls.__doc__}
    for name in methods:
        namespace[name] = _member(name, _parking(module, name, park))
    for name in MUTATORS:
        if hasattr(cls, name):
            namespace[name] = _member(name, _refusing(module, name))
    for name in CASTS:
        namespace[name] = _member(name, _ignoring(module, name))
    if hasattr(cls, "cache_context"):
        namespace["cache_context"] = _cache_context(module)
    if hasattr(cls, "_reset_stateful_cache"):
        reset = _ignoring(module, "_reset_stateful_cache")
        namespace["_reset_stateful_cache"] = _member("_reset_stateful_cache", reset)
    proxy_class: Any = type(cls)(cls.__name__, (cls,), namespace)
    proxy: nn.Module = object.__new__(proxy_class)
    object.__setattr__(proxy, "__dict__", module.__dict__)
    return proxy


def _member(name: str, function: Callable[..., Any]) -> Any:
    # The shared `__dict__` may hold a method of the same name (a compiled `decode`, for one), which
    # would win over a function of the class; it does not win over a property.
    if name == "__call__":
        return function
    return property(lambda proxy: functools.partial(function, proxy))


def _parking(module: nn.Module, name: str, park: Park) -> Callable[..., Any]:
    real = module if name == "__call__" else getattr(module, name)

    def call(proxy: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        current = greenlet.getcurrent()
        if not isinstance(current, JobGreenlet) or _is_autocast():
            return real(*args, **kwargs)
        return park(current.scheduled, name, args, kwargs)

    return call


def _is_autocast() -> bool:
    # Autocast belongs to the thread: parked inside it, a job would turn it on for the others.
    return bool(torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"))


def _refusing(module: nn.Module, name: str) -> Callable[..., Any]:
    def change(proxy: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(greenlet.getcurrent(), JobGreenlet):
            raise NeedsExclusive(f"the pipeline calls {type(module).__name__}.{name}")
        return getattr(module, name)(*args, **kwargs)

    return change


def _ignoring(module: nn.Module, name: str) -> Callable[..., Any]:
    def convert(proxy: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(greenlet.getcurrent(), JobGreenlet):
            return proxy
        return getattr(module, name)(*args, **kwargs)

    return convert


def _cache_context(module: nn.Module) -> Callable[..., Any]:
    def real(*args: Any, **kwargs: Any) -> Any:
        return module.cache_context(*args, **kwargs)

    @contextlib.contextmanager
    def cache_context(self: nn.Module, /, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Pipelines name the context always; it matters only to a module whose cache is enabled, and
        # pipelines with one run exclusively.
        if isinstance(greenlet.getcurrent(), JobGreenlet):
            yield
            return
        with real(*args, **kwargs):
            yield

    return cache_context
