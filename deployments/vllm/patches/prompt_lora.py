"""Gives each prompt token its own adapter when vLLM computes the logits of prompts with LoRA.

vLLM keeps one adapter index for each sampled row and uses these for
the rows of prompt tokens too (`prompt_logprobs`, `echo` with `logprobs`): on CPU the shapes do not
fit and the engine dies, on a GPU an adapter of `lm_head` is applied to the wrong rows
(https://github.com/vllm-project/vllm/issues/51594).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from deployments.vllm.patches.methods import moved, replace_method

if TYPE_CHECKING:
    import torch


def mend(*, v2: bool) -> None:
    """Changes vLLM's classes in this process; a second call does nothing.

    Args:
        v2: Whether the engine uses vLLM's second model runner.

    Raises:
        RuntimeError: vLLM moved what this changes.
    """
    from vllm.lora.punica_wrapper.punica_base import PunicaWrapperBase
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    for name in ("token_lora_indices", "sampler_indices"):
        if not isinstance(inspect.getattr_static(PunicaWrapperBase, name, None), property):
            raise moved(f"{PunicaWrapperBase.__qualname__}.{name}")
    replace_method(
        PunicaWrapperCPU,
        "add_lora_logits",
        ("y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "buffer", "kwargs"),
        lambda _: _add_lora_logits,
    )
    if v2:
        from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

        for name in ("compute_prompt_logprobs", "compute_prompt_token_id_logprobs"):
            replace_method(PromptLogprobsWorker, name, ("logits_fn", "hidden_states"), _wrap_v2)
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        parameters = ("hidden_states", "num_scheduled_tokens")
        replace_method(GPUModelRunner, "_get_prompt_logprobs_dict", parameters, _wrap_v1)


def _wrap_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_prompt_logprobs(self: Any, hidden_states: torch.Tensor, scheduled: Any) -> Any:
        if not self.num_prompt_logprobs:
            return original(self, hidden_states, scheduled)
        model = self.model
        self.model = _RowsOfPrompts(model.compute_logits, hidden_states)
        try:
            return original(self, hidden_states, scheduled)
        finally:
            self.model = model

    return get_prompt_logprobs


def _wrap_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute(
        self: Any, logits_fn: Callable[..., Any], hidden_states: torch.Tensor, *rest: Any
    ) -> Any:
        rows = _RowsOfPrompts(logits_fn, hidden_states)
        return original(self, rows.compute_logits, hidden_states, *rest)

    return compute


class _RowsOfPrompts:
    """Computes logits of slices of one step's hidden states, each row with its token's adapter.

    Args:
        compute_logits: The model's method.
        hidden_states: Of shape (tokens, hidden size), in the order of the step's tokens.
    """

    def __init__(self, compute_logits: Any, hidden_states: torch.Tensor) -> None:
        self._compute_logits = compute_logits
        self._hidden_states = hidden_states
        self._wrapper: Any = None

    def compute_logits(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Returns the logits of `rows`, which are a slice of the step's hidden states."""
        wrapper = self._wrapper = self._wrapper or _find_wrapper(self._compute_logits.__self__)
        with contextlib.ExitStack() as stack:
            if wrapper is not None:
                first = self._first_row(rows)
                indices = wrapper.token_lora_indices[first : first + rows.shape[0]]
                stack.enter_context(_sampled_with(wrapper, indices))
            logits: torch.Tensor | None = self._compute_logits(rows)
        return logits

    def _first_row(self, rows: torch.Tensor) -> int:
        states = self._hidden_states
        if rows.untyped_storage().data_ptr() != states.untyped_storage().data_ptr():
            raise moved("computation of a prompt's logits")
        return int(rows.storage_offset() - states.storage_offset()) // int(states.stride(0))


def _find_wrapper(model: Any) -> Any:
    """Returns what holds the adapter indices of a model's logits; None for a model without."""
    from vllm.lora.layers.logits_processor import LogitsProcessorWithLoRA

    for module in model.modules():
        if isinstance(module, LogitsProcessorWithLoRA):
            return module.punica_wrapper
    return None


@contextlib.contextmanager
def _sampled_with(wrapper: Any, indices: torch.Tensor) -> Iterator[None]:
    """Puts other adapter indices in the place of those of the sampled rows."""
    # A step with the same batch does not set them again.
    before = wrapper.sampler_indices.clone()
    _set_indices(wrapper, indices)
    try:
        yield
    finally:
        _set_indices(wrapper, before)


def _set_indices(wrapper: Any, indices: torch.Tensor) -> None:
    number = indices.shape[0]
    wrapper._sampler_indices[:number].copy_(indices)
    wrapper.indices_len[1] = number
    if (meta := getattr(wrapper, "prompt_mapping_meta", None)) is not None:
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        with gpu_sync_allowed():
            meta.prepare_tensors(indices)


def _add_lora_logits(
    self: Any,
    y: torch.Tensor,
    x: torch.Tensor,
    lora_a_stacked: torch.Tensor,
    lora_b_stacked: torch.Tensor,
    scale: float,
    *,
    buffer: torch.Tensor | None = None,
    **kwargs: Any,
) -> None:
    """Adds each row's adapter of `lm_head` to the logits, one adapter after the other.

    vLLM's own copies the adapter's matrix for each row: 10 GB for 1,000 tokens of a vocabulary of
    150,000 at rank 16.

    Args:
        self: The wrapper with the indices.
        y: Logits (rows, vocabulary), changed in place.
        x: Hidden states (rows, hidden size).
        lora_a_stacked: (adapters, 1, rank, hidden size).
        lora_b_stacked: (adapters, 1, vocabulary, rank).
        scale: Factor of the result.
        buffer: Unused.
        kwargs: Unused.
    """
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    indices = self.sampler_indices
    if indices.shape[0] == 1:
        indices = indices.expand(x.shape[0])
    for index in indices.unique().tolist():
        if index < 0:  # no adapter
            continue
        rows = (indices == index).nonzero().squeeze(1)
        down = x[rows].float() @ lora_a_stacked[index, 0].float().T
        up = (down * scale) @ lora_b_stacked[index, 0].float().T
        # Model and adapter may pad the vocabulary differently.
        common = min(up.shape[1], y.shape[1])
        y[rows, :common] += up[:, :common].to(y.dtype)
