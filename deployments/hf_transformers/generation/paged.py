"""Continuous batching: transformers' own manager and paged cache, with our choice of tokens.

The manager samples with one seed for all requests. So it is told to take the likeliest token, and a
logits processor of ours, which knows the rows of every batch, leaves just one: the token that the
row's own fields and seed choose. That needs the batch's rows to be known when the logits come, so
CUDA graphs and asynchronous batching, which replay or overtake that, stay off.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from deployments.hf_transformers.generation.backend import Update
from deployments.hf_transformers.generation.job import TextJob
from deployments.hf_transformers.generation.sampling import Row, choose_tokens
from truthgpt_serve.errors import UnavailableError

NO_END = -1
"""The manager's word for a request without end tokens."""


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """How much the cache holds.

    Attributes:
        page_tokens: Tokens in a page.
        num_pages: Pages in all.
        max_batch_tokens: Tokens in one forward pass.
        max_rows: Sequences in one forward pass.
        max_waiting: Requests that may wait for a row.
        prefix_cache: Whether equal beginnings share pages.
    """

    page_tokens: int
    num_pages: int
    max_batch_tokens: int
    max_rows: int
    max_waiting: int
    prefix_cache: bool


class _Chooser(ContinuousBatchingLogitsProcessor):
    """Leaves only the chosen token of each row its logit.

    Attributes:
        rows: The sampler's row of each request.
        seen: When it is a list: the logits of every step, for the trial at start.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 - the base class asks for it like this
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.seen: list[torch.Tensor] | None = None
        self._batch: list[Row | None] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Does nothing: no row has arguments."""

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Notes whose logits come next; there are no arguments for the device."""
        self._batch = [self.rows.get(item.state.request_id) for item in requests_with_new_token]
        return torch.zeros(len(self._batch), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Returns the logits, all but one token of each row at minus infinity."""
        if self.seen is not None:
            self.seen.append(scores[: len(self._batch)].float().cpu())
        tokens = choose_tokens(scores[: len(self._batch)], self._batch)
        chosen = torch.full_like(scores, -torch.inf)
        chosen[torch.arange(len(tokens), device=scores.device), tokens] = 0
        return chosen


class PagedBackend:
    """Runs texts through transformers' continuous batching; see `Backend`.

    Args:
        model: The language model; its attention is switched to one that pages.
        plan: How much the cache holds.

    Raises:
        Exception: The architecture has no paged cache, or the memory is too small for it.
    """

    kind = "continuous"

    def __init__(self, model: Any, plan: PagedPlan) -> None:
        self.max_tokens: int | None = plan.page_tokens * plan.num_pages
        self.chooser = _Chooser()
        self._jobs: dict[str, TextJob] = {}
        self._num_taken: dict[str, int] = {}
        self._lock = threading.Lock()
        self._manager: Any = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=NO_END, max_new_tokens=1),
            ContinuousBatchingConfig(
                page_size=plan.page_tokens,
                num_blocks=plan.num_pages,
                max_batch_tokens=plan.max_batch_tokens,
                max_requests_per_batch=plan.max_rows,
                max_queue_size=plan.max_rows + plan.max_waiting,
                max_memory_percent=1.0,  # the pages are counted before: this would shrink them
                allow_block_sharing=plan.prefix_cache,
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,  # the attention was chosen, and tried, before
            ),
        )
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self.chooser]))
        processors.tensors_required = 1
        self._manager.logit_processor = processors
        self._manager.start()

    def submit(self, job: TextJob) -> None:
        """Takes a text; its place in the manager's queue is sure, because requests are counted."""
        call = job.call
        with self._lock:
            self._jobs[job.name] = job
            self._num_taken[job.name] = 0
            self.chooser.rows[job.name] = job.row
        name = self._manager.add_request(
            call.prompt,
            request_id=job.name,
            max_new_tokens=call.max_new_tokens,
            eos_token_id=sorted(call.end_ids) or [NO_END],
            streaming=True,
        )
        if name is None:
            self._forget(job.name)
            raise UnavailableError("the engine has stopped and takes no more requests")

    def cancel(self, job: TextJob) -> None:
        """Gives up a text; the manager frees its pages before the next token."""
        if self._forget(job.name):
            self._manager.cancel_request(job.name)

    def _forget(self, name: str) -> bool:
        with self._lock:
            self.chooser.rows.pop(name, None)
            self._num_taken.pop(name, None)
            return self._jobs.pop(name, None) is not None

    def poll(self, timeout_s: float) -> list[Update]:
        """Waits for news; what has come meanwhile is taken along."""
        updates: list[Update] = []
        manager = self._manager
        if manager is None:
            return updates
        output = manager.get_result(timeout=timeout_s)
        while output is not None:
            update = self._read(output)
            if update is not None:
                updates.append(update)
            output = manager.get_result(timeout=0)
        return updates

    def _read(self, output: Any) -> Update | None:
        name = output.request_id
        with self._lock:
            taken = self._num_taken.get(name)
            if taken is None:
                return None  # cancelled
            tokens = output.generated_tokens[taken:]
            self._num_taken[name] = taken + len(tokens)
        if output.is_finished():
            self._forget(name)
        return Update(name, tokens, output.error)

    def failure(self) -> BaseException | None:
        """Returns what ended the manager's thread, or None while it lives."""
        manager = self._manager
        if manager is None:
            return UnavailableError("the engine is closed")
        if manager.is_running():
            return None
        error: BaseException | None = manager.background_thread_status.fatal_error
        return error or RuntimeError("transformers' generation thread ended")

    def close(self, timeout_s: float) -> None:
        """Stops the manager; what still runs fails."""
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.stop(block=True, timeout=timeout_s, hard_stop=True)
            manager.destroy()
