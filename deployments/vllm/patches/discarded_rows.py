"""Keeps a request's random generator still while vLLM on CPU samples a token that it discards.

A step that ends inside a prompt samples a token all the same, and vLLM then turns the request's
generator (`seed`) back by an offset. A CPU's generator has none: `seed` with a prompt that takes
two steps, long or in a busy batch, ends the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deployments.vllm.patches.methods import replace_method

_HELD = "_truthgpt_held_generators"


def mend() -> None:
    """Changes vLLM's model runner in this process; a second call does nothing.

    Raises:
        RuntimeError: vLLM moved what this changes.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    sampled = ("logits", "spec_decode_metadata")
    replace_method(GPUModelRunner, "_sample", sampled, _wrap_sample)
    parameters = ("scheduler_output", "sampler_output", "logits")
    replace_method(GPUModelRunner, "_bookkeeping_sync", parameters, _wrap_bookkeeping)


def _wrap_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def sample(self: Any, *arguments: Any, **named: Any) -> Any:
        batch = self.input_batch
        # The metadata of the sampler holds the same dict.
        generators = batch.generators
        discarded = self.discard_request_mask.np[: batch.num_reqs].nonzero()[0].tolist()
        held = {row: generators.pop(row) for row in discarded if row in generators}
        setattr(self, _HELD, held)
        return original(self, *arguments, **named)

    return sample


def _wrap_bookkeeping(original: Callable[..., Any]) -> Callable[..., Any]:
    def bookkeep(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return original(self, *arguments, **named)
        finally:
            self.input_batch.generators.update(self.__dict__.pop(_HELD, {}))

    return bookkeep
