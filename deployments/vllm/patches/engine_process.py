"""Corrects faults of vLLM 0.32.0 inside the engine's own processes.

The one place where vLLM's classes are changed. A vLLM whose classes moved is refused at start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deployments.vllm.grammar import engine_hooks as grammar_engine
from deployments.vllm.patches import discarded_rows, gloo_device, prompt_lora
from deployments.vllm.patches.methods import replace_method


def mend_workers() -> None:
    """Has each worker of this process mend its model runner before it makes one.

    Imports no model runner by itself: the process in front of the engine has no use for one.

    Raises:
        RuntimeError: vLLM moved the worker; the worker raises it for other parts.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    replace_method(WorkerWrapperBase, "init_device", (), _wrap)
    grammar_engine.mend_engine()


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_device(self: Any) -> Any:
        from vllm.platforms import current_platform

        v2 = bool(self.vllm_config.use_v2_model_runner)
        if self.vllm_config.lora_config is not None:
            prompt_lora.mend(v2=v2)
        if current_platform.is_cpu():
            gloo_device.share()
            if not v2:
                discarded_rows.mend()
        return original(self)

    return init_device
