"""Ray Train's set-up of torch, with a meeting place for the workers that no stranger reaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from truthgpt_serve.cluster.torch_store import listen_on_named_address

_BACKEND: Any = TorchConfig().backend_cls


class _Backend(_BACKEND):  # type: ignore[misc]  # the class behind torch's configuration is untyped
    """Ray Train's own, after each worker has been prepared."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Connects the workers."""
        worker_group.execute(listen_on_named_address)
        super().on_start(worker_group, backend_config)


@dataclass
class NamedAddressConfig(TorchConfig):
    """Ray Train's configuration of torch, without a store that everybody reaches."""

    @property
    def backend_cls(self) -> Any:
        """The backend that Ray Train starts."""
        return _Backend
