"""An added pipeline and its modules, as the engine keeps them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from deployments.hf_diffusers.stepping.calls.schemas import CallSchema, find_schema
from deployments.hf_diffusers.stepping.pipelines.adapters import AdapterBank
from deployments.hf_diffusers.stepping.pipelines.pipeline_copy import find_device
from deployments.hf_diffusers.stepping.pipelines.previews import Preview, find_preview
from deployments.hf_diffusers.stepping.pipelines.proxies import Park, create_proxy

logger = logging.getLogger(__name__)

Mode = Literal["auto", "batched", "solo", "exclusive"]

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Component names of denoisers whose class has no schema."""

SHARED_STATE_CLASSES = ("PAG", "SAG", "AttendAndExcite", "LEdits", "LEDits", "Pix2PixZero")
"""Parts of class names of pipelines that swap the attention processors of their modules."""


@dataclass(eq=False)
class ModuleEntry:
    """One module, shared by all pipelines that have it."""

    module: nn.Module
    name: str
    """`<pipeline>.<component>` of the pipeline added first."""
    is_denoiser: bool
    is_decoder: bool
    adapters: AdapterBank | None = None
    is_solo: bool = False
    """Its calls gave wrong results in a batch: they run alone for ever."""
    guesses: dict[str, CallSchema | None] = field(default_factory=dict)
    """Guessed schemas of an unknown denoiser by the structure of a call; None: none fits."""
    checked: set[str] = field(default_factory=set)
    """Structures that passed the self-check."""

    @property
    def runs_alone(self) -> bool:
        """Whether no batch of its calls is known to give what they give alone."""
        return self.is_solo or (bool(self.guesses) and not self.checked)

    @property
    def device(self) -> torch.device:
        """Where the module computes: that of its first parameter."""
        first = next(self.module.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of its first floating-point parameter."""
        types = (item.dtype for item in self.module.parameters() if item.is_floating_point())
        return next(types, torch.float32)

    def function(self, method: str) -> Callable[..., Any]:
        """Returns what to call for one of its methods."""
        real: Callable[..., Any] = (
            self.module if method == "__call__" else getattr(self.module, method)
        )
        return real


@dataclass(eq=False)
class PipelineEntry:
    """One added pipeline."""

    name: str
    pipeline: Any
    mode: Literal["batched", "solo", "exclusive"]
    proxies: Mapping[str, nn.Module]
    modules: Mapping[str, ModuleEntry]
    adapters: frozenset[str]
    preview: Preview | None
    has_lora: bool

    @property
    def actual_mode(self) -> Literal["batched", "solo", "exclusive"]:
        """How its requests run by now: `solo` while the calls of all denoisers run alone."""
        denoisers = [item for item in self.modules.values() if item.is_denoiser]
        if self.mode != "batched" or not denoisers:
            return self.mode
        return "solo" if all(item.runs_alone for item in denoisers) else "batched"

    @cached_property
    def device(self) -> torch.device | None:
        """Where the pipeline computes; looked up once, as its modules stay where they are."""
        return find_device(self.pipeline)

    @property
    def is_on_gpu(self) -> bool:
        """Whether any module computes on a GPU."""
        return any(entry.device.type == "cuda" for entry in self.modules.values())


class Registry:
    """The pipelines of one engine, and their modules, each of which is known once."""

    def __init__(self, park: Callable[[ModuleEntry], Park]) -> None:
        self._park = park
        self._modules: dict[int, ModuleEntry] = {}
        self._proxies: dict[int, nn.Module] = {}
        self.pipelines: dict[str, PipelineEntry] = {}

    def add(self, name: str, pipeline: Any, mode: Mode, adapters: Sequence[str]) -> PipelineEntry:
        """Adds a pipeline.

        Raises:
            ValueError: The name is taken, or the adapters cannot be used.
        """
        if name in self.pipelines:
            raise ValueError(f"a pipeline {name!r} exists already: choose another name")
        decided, reason = _decide_mode(pipeline) if mode == "auto" else (mode, "")
        if reason:
            logger.info("pipeline %s runs each request alone: %s", name, reason)
        if decided != "exclusive":
            _keep_upcast(name, pipeline)
        modules = {
            component: self._module(f"{name}.{component}", component, value)
            for component, value in pipeline.components.items()
            if isinstance(value, nn.Module)
        }
        self._add_adapters(name, modules, adapters)
        entry = PipelineEntry(
            name=name,
            pipeline=pipeline,
            mode=decided,
            proxies={key: self._proxies[id(item.module)] for key, item in modules.items()},
            modules=modules,
            adapters=frozenset(adapters),
            preview=find_preview(pipeline),
            has_lora=any(getattr(item.module, "peft_config", None) for item in modules.values()),
        )
        self.pipelines[name] = entry
        return entry

    def close(self) -> None:
        """Gives the adapters of all modules back to their pipelines."""
        for entry in self._modules.values():
            if entry.adapters is not None:
                entry.adapters.close()
                entry.adapters = None

    def _module(self, name: str, component: str, module: nn.Module) -> ModuleEntry:
        entry = self._modules.get(id(module))
        if entry is None:
            is_vae = hasattr(module, "decode") and hasattr(module, "encode")
            schema = find_schema(module, "__call__")
            entry = ModuleEntry(
                module=module,
                name=name,
                is_denoiser=component in DENOISERS if schema is None else schema.is_denoiser,
                is_decoder=is_vae,
            )
            methods = ("decode", "encode") if is_vae else ("__call__",)
            self._modules[id(module)] = entry
            self._proxies[id(module)] = create_proxy(module, methods, self._park(entry))
        return entry

    def _add_adapters(
        self, name: str, modules: Mapping[str, ModuleEntry], adapters: Sequence[str]
    ) -> None:
        adapted = [item for item in modules.values() if getattr(item.module, "peft_config", None)]
        found = {adapter for item in adapted for adapter in item.module.peft_config}
        missing = sorted(set(adapters) - found)
        if missing:
            raise ValueError(
                f"pipeline {name!r} has no adapter {missing}: load it with "
                f"`load_lora_weights(..., adapter_name=...)` before adding the pipeline"
            )
        for item in adapted if adapters else ():
            bank = item.adapters or AdapterBank(item.module, item.name)
            try:
                bank.add(adapters)
            except ValueError:
                if item.adapters is None:
                    bank.close()
                raise
            item.adapters = bank


def _decide_mode(pipeline: Any) -> tuple[Literal["batched", "exclusive"], str]:
    """Returns the mode of a pipeline and, if that is exclusive, why."""
    cls = type(pipeline).__name__
    if any(part in cls for part in SHARED_STATE_CLASSES):
        return "exclusive", f"{cls} swaps the attention processors of its modules"
    if getattr(pipeline, "_all_hooks", None):
        return "exclusive", "its modules are offloaded to the CPU one after the other"
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module):
            if _is_offloaded(component):
                return "exclusive", f"its {name} is offloaded to the CPU piece by piece"
            if getattr(component, "is_cache_enabled", False):
                return "exclusive", f"its {name} keeps a step cache, which holds one request"
        elif _changes_models(component):
            return "exclusive", f"its {name} puts hooks into the denoiser"
    return "batched", ""


def _is_offloaded(module: nn.Module) -> bool:
    hooks = (getattr(item, "_hf_hook", None) for item in module.modules())
    return any(getattr(hook, "offload", False) for hook in hooks)


def _changes_models(component: Any) -> bool:
    prepare = getattr(type(component), "prepare_models", None)
    return prepare is not None and prepare.__qualname__ != "BaseGuidance.prepare_models"


def _keep_upcast(name: str, pipeline: Any) -> None:
    """Makes permanent what stock pipelines do around each decode with such a VAE.

    They convert the shared VAE to float32 and back: with two requests at once, one converts it back
    under the other, whose image comes out wrong.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None or not getattr(vae.config, "force_upcast", False):
        return
    if getattr(vae, "dtype", None) == torch.float16:
        logger.warning(
            "the VAE of pipeline %s overflows in float16 and is kept in float32; one in bfloat16, "
            "or one fixed for float16, takes half the memory",
            name,
        )
        vae.to(dtype=torch.float32)
