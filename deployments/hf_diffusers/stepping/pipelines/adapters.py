"""LoRA adapters per row of a batch, by hooks on PEFT's layers.

PEFT's own way to mix adapters in a batch, `adapter_names`, allows one adapter for each row, with
the one weight that is stored in the layer. Requests name several, each with its own weight. So the
layers are switched to their base weights and a forward hook adds, for each run of rows,
`lora_B(lora_A(x)) * alpha / rank * weight` (Hu et al. 2021, arXiv:2106.09685, section 4.1) of each
adapter asked for, in the order in which PEFT would.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

Adapters = tuple[tuple[str, float], ...]
"""Names and weights, in the order asked for: some kinds of adapters do not commute."""

HOOKABLE_LAYERS = ("Linear", "Conv", "Torchao")
"""How the names of those PEFT layers begin that compute `base(x) + lora_B(lora_A(x)) * scaling`."""


class MixedRowsError(Exception):
    """A layer sees the batch in another layout than rows first: its rows cannot be told apart."""


@dataclass(frozen=True)
class Rows:
    """Some consecutive rows of a batch and what to add for them."""

    start: int
    stop: int
    adapters: Adapters


class AdapterBank:
    """The adapters of one module. For one thread; owns the module's PEFT layers until closed."""

    def __init__(self, module: nn.Module, name: str) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._name = name
        self._layers = [item for item in module.modules() if isinstance(item, BaseTunerLayer)]
        if any(layer.merged for layer in self._layers):
            raise ValueError(f"{name} has merged adapters: call `unfuse_lora` first")
        self._before = [(layer.disable_adapters, layer.active_adapters) for layer in self._layers]
        self.names: frozenset[str] = frozenset()
        """The adapters that touch this module, of those that were added."""
        self.mixable = True
        """Whether rows with different adapters may share a forward."""
        self._is_hookable = True
        self._units: dict[tuple[int, str], float] = {}
        self._rows: Sequence[Rows] = ()
        self._switched: Adapters | None = None
        self._handles = [
            layer.register_forward_hook(self._add, with_kwargs=True) for layer in self._layers
        ]

    def add(self, adapters: Sequence[str]) -> None:
        """Takes over adapters that are loaded already.

        Raises:
            ValueError: An adapter is active that was not named: it could no longer take part.
        """
        names = self.names | {name for name in adapters if any(map(_has(name), self._layers))}
        active = {name for _, names in self._before for name in names}
        disabled = all(is_disabled for is_disabled, _ in self._before)
        unnamed = sorted(active - names)
        if unnamed and not disabled:
            raise ValueError(
                f"{self._name} has the active adapter {unnamed} besides {sorted(adapters)}: name "
                f"it too, merge it with `fuse_lora`, or delete it"
            )
        self.names = names
        for index, layer in enumerate(self._layers):
            for name in filter(_on(layer), names):
                layer.set_scale(name, 1.0)
                self._units[index, name] = float(layer.scaling[name])
                if not _is_hookable(layer, name):
                    self._is_hookable = self.mixable = False
                    logger.info("%s: adapter %s cannot share a batch", self._name, name)
        self._index = {id(layer): index for index, layer in enumerate(self._layers)}
        self._switch(())

    def of(self, adapters: Adapters) -> Adapters:
        """Returns those adapters that touch this module."""
        ours = (item for item in adapters if item[0] in self.names)
        # A weight of 0 is no adapter, but for kinds such as DoRA, which rescale the base weights.
        return tuple(item for item in ours if item[1] != 0 or not self._is_hookable)

    @contextlib.contextmanager
    def applied(self, rows: Sequence[Rows]) -> Iterator[None]:
        """Applies adapters to the module's forwards inside.

        Raises, out of the forward:
            MixedRowsError: Rows with different adapters share it, and a layer cannot tell them
            apart.
        """
        if not self._is_hookable:
            self._switch(rows[0].adapters)
            yield
            return
        self._rows = rows
        try:
            yield
        finally:
            self._rows = ()

    @contextlib.contextmanager
    def switched(self, adapters: Adapters) -> Iterator[None]:
        """Applies adapters to all rows by PEFT's own switches, as `set_adapters` does."""
        self._switch(self.of(adapters))
        try:
            yield
        finally:
            self._switch(())

    def close(self) -> None:
        """Leaves the layers as they were, with all weights of adapters at 1."""
        for handle in self._handles:
            handle.remove()
        for index, (layer, (is_disabled, active)) in enumerate(
            zip(self._layers, self._before, strict=True)
        ):
            for name in filter(_on(layer), self.names):
                layer.scaling[name] = self._units[index, name]
            layer.set_adapter(list(active), inference_mode=True)
            layer.enable_adapters(not is_disabled)

    def _switch(self, adapters: Adapters) -> None:
        if adapters == self._switched:
            return
        names = [name for name, _ in adapters]
        for layer in self._layers:
            layer.set_adapter(names, inference_mode=True)
            for name, weight in adapters:
                layer.set_scale(name, weight)
            layer.enable_adapters(bool(names))
        self._switched = adapters

    def _add(self, layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of a PEFT layer: adds the adapters of each run of rows to its output."""
        rows = [item for item in self._rows if item.adapters]
        if not rows:
            return None
        x = args[0] if args else kwargs["x"]
        total = self._rows[-1].stop
        if len({item.adapters for item in self._rows}) == 1:
            return self._added(layer, x, output, rows[0].adapters)
        if x.shape[0] != total or output.shape[0] != total:
            raise MixedRowsError(
                f"a layer of {self._name} sees {x.shape[0]} rows of a batch of {total}"
            )
        for item in rows:
            part = slice(item.start, item.stop)
            output[part] = self._added(layer, x[part], output[part], item.adapters)
        return output

    def _added(self, layer: Any, x: Any, output: Any, adapters: Adapters) -> Any:
        result = output
        for name, weight in adapters:
            if name not in layer.lora_A:
                continue
            down = layer.lora_A[name]
            low = down(layer.lora_dropout[name](x.to(down.weight.dtype)))
            unit = self._units[self._index[id(layer)], name]
            result = result + layer.lora_B[name](low) * (weight * unit)
        return result.to(output.dtype)


def _has(name: str) -> Any:
    return lambda layer: name in layer.scaling


def _on(layer: Any) -> Any:
    return lambda name: name in layer.scaling


def _is_hookable(layer: Any, name: str) -> bool:
    return (
        type(layer).__name__.startswith(HOOKABLE_LAYERS)
        and name in layer.lora_A
        and name not in layer.lora_variant
    )
