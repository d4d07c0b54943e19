"""Padded batches: `model.generate` for every architecture, one batch to its end after the other.

Our logits processor chooses each row's token by the row's own fields, our stopping criterion ends
each row by itself. A row that has ended stays in its batch as padding until the last one ends.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from deployments.hf_transformers.generation.backend import Update
from deployments.hf_transformers.generation.job import TextJob
from deployments.hf_transformers.generation.sampling import choose_tokens
from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.queue_full import queue_full

logger = logging.getLogger(__name__)
IDLE_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class PaddedPlan:
    """How batches are made.

    Attributes:
        max_rows: Sequences in one batch.
        max_waiting: Requests that may wait for a batch.
        wait_s: How long the first request of a batch waits for others, in seconds.
        pad_id: Token that fills up shorter rows.
        use_cache: Whether keys and values are kept.
        mixed_lengths: Whether prompts of different lengths share a batch.
    """

    max_rows: int
    max_waiting: int
    wait_s: float
    pad_id: int
    use_cache: bool
    mixed_lengths: bool = True


class _Batch:
    """One batch: chooses its tokens, and knows which rows have ended."""

    def __init__(
        self,
        jobs: list[TextJob],
        pad_id: int,
        send: Callable[[list[Update]], None],
        closing: threading.Event,
    ) -> None:
        self._jobs = jobs
        self._pad_id = pad_id
        self._send = send
        self._closing = closing
        self._open = [True] * len(jobs)

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Returns the logits with only the chosen token of each row left; sends the tokens."""
        self._leave_cancelled()
        rows = [
            job.row if is_open else None
            for job, is_open in zip(self._jobs, self._open, strict=True)
        ]
        tokens = choose_tokens(scores, rows)
        updates = []
        for index, token in enumerate(tokens.tolist()):
            job = self._jobs[index]
            if not self._open[index]:
                tokens[index] = self._pad_id
                continue
            self._open[index] = job.ends_with(token, len(job.row.tokens)) is None
            updates.append(Update(job.name, [token]))
        self._send(updates)
        chosen = torch.full_like(scores, -torch.inf)
        chosen[torch.arange(len(tokens), device=scores.device), tokens] = 0
        return chosen

    def _leave_cancelled(self) -> None:
        for index, job in enumerate(self._jobs):
            if job.finished or self._closing.is_set():
                self._open[index] = False

    def ended(self, device: Any) -> torch.Tensor:
        """Returns which rows have ended."""
        self._leave_cancelled()
        return ~torch.tensor(self._open, device=device)


class _Choose(LogitsProcessor):
    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._batch.choose(scores)


class _End(StoppingCriteria):
    def __init__(self, batch: _Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_options: Any) -> torch.Tensor:
        return self._batch.ended(input_ids.device)


class PaddedBackend:
    """Runs texts through `model.generate` in batches; see `Backend`.

    Args:
        model: The model; its generation configuration must name no end token, so that rows end
            only here.
        plan: How batches are made.
    """

    kind = "padded"

    def __init__(self, model: Any, plan: PaddedPlan) -> None:
        self.max_tokens: int | None = None
        self._model = model
        self._plan = plan
        self._waiting: queue.Queue[TextJob] = queue.Queue(plan.max_rows + plan.max_waiting)
        self._held: list[TextJob] = []
        self._news: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, job: TextJob) -> None:
        """Takes a text; it runs in the next batch with a row for it."""
        if (failure := self.failure()) is not None:
            raise UnavailableError(f"the engine has stopped: {failure}")
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise queue_full("this model", self._waiting.qsize()) from None

    def cancel(self, job: TextJob) -> None:
        """Nothing to do: a batch looks at `job.finished` before and after each token."""

    def poll(self, timeout_s: float) -> list[Update]:
        """Waits for news; what has come meanwhile is taken along."""
        updates: list[Update] = []
        with contextlib.suppress(queue.Empty):
            updates += self._news.get(timeout=timeout_s)
            while True:
                updates += self._news.get_nowait()
        return updates

    def failure(self) -> BaseException | None:
        """Returns an error once the thread has ended."""
        if self._closing.is_set():
            return UnavailableError("the engine is closed")
        return None if self._thread.is_alive() else RuntimeError("the generation thread ended")

    def close(self, timeout_s: float) -> None:
        """Ends the thread after the running token."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._closing.is_set():
            jobs = self._collect()
            if not jobs:
                continue
            try:
                self._generate(jobs)
            except Exception as error:  # the model's code may raise anything
                logger.exception("a batch of %d texts failed", len(jobs))
                text = f"{type(error).__name__}: {error}"
                self._news.put([Update(job.name, [], text) for job in jobs])

    def _collect(self) -> list[TextJob]:
        """Returns the jobs of the next batch; waits a little for others to join the first."""
        jobs, self._held = self._held[: self._plan.max_rows], self._held[self._plan.max_rows :]
        deadline = time.monotonic() + (self._plan.wait_s if jobs else IDLE_WAIT_S)
        while len(jobs) < self._plan.max_rows:
            try:
                job = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if not jobs:
                deadline = time.monotonic() + self._plan.wait_s
            jobs.append(job)
        jobs = [job for job in jobs if not job.finished]
        if self._plan.mixed_lengths or not jobs:
            return jobs
        length = len(jobs[0].call.prompt)
        self._held += [job for job in jobs if len(job.call.prompt) != length]
        return [job for job in jobs if len(job.call.prompt) == length]

    def _generate(self, jobs: list[TextJob]) -> None:
        batch = _Batch(jobs, self._plan.pad_id, self._news.put, self._closing)
        prompts = [job.call.prompt for job in jobs]
        ids, mask = self._pad(prompts)
        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(job.call.max_new_tokens for job in jobs),
            use_cache=self._plan.use_cache,
            logits_processor=LogitsProcessorList([_Choose(batch)]),
            stopping_criteria=StoppingCriteriaList([_End(batch)]),
        )

    def _pad(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns token ids and mask, `[rows, longest]`: decoders are filled up on the left."""
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._plan.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            right = self._model.config.is_encoder_decoder
            place = slice(0, len(prompt)) if right else slice(longest - len(prompt), None)
            ids[row, place] = torch.tensor(prompt)
            mask[row, place] = 1
        return ids.to(self._model.device), mask.to(self._model.device)
