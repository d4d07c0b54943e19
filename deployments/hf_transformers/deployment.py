"""The transformers family's classes: the model contract around one engine each.

The asynchronous methods never block: texts are made in the engine's own threads, and tokenized in
one of the class's.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from deployments.hf_transformers.config import DEFAULT_EMBEDDING_REQUESTS
from truthgpt_serve.errors import UnavailableError
from truthgpt_serve.usage.counted import add_tokens

ENTRIES = ("logprobs", "prompt_logprobs")
"""What items of a text have beside it, where it is asked for."""


class EngineModel:
    """What the classes have in common: an engine, from `load` to `close`."""

    def __init__(self) -> None:
        self._engine: Any = None

    @property
    def acceleration(self) -> dict[str, Any]:
        """The model's backend, for its card; empty before `load`."""
        return {} if self._engine is None else dict(self._engine.acceleration)

    def _loaded(self) -> Any:
        if self._engine is None:
            raise UnavailableError("the model is not loaded: call `load(cfg)` first")
        return self._engine

    def close(self) -> None:
        """Frees the weights; safe to call twice."""
        self._engine = None


class TextModel(EngineModel):
    """A language model; its requests share every forward pass.

    Attributes:
        tokenizer: The model's tokenizer, once it is loaded.
        default_max_new_tokens: Tokens of an answer when the request does not say.
        repeats_prompt: False: the text is the answer only, even when it begins like the prompt.
        accepts_token_ids: Prompts may come as token ids.
        gives_logprobs: Tokens may come with their log probabilities.
        gives_prompt_logprobs: The same for those of prompts; known once the model is loaded.
        takes_logit_bias: Logits may be changed by `logit_bias`.
        takes_stop_token_ids: Answers end at `stop_token_ids` too.
        takes_constraint: Answers may be bound by a compiled grammar, where `xgrammar` is installed.
        takes_thoughts: The same behind thoughts of bounded length.
        vocab_size: Logits of one position, once the model is loaded.
        end_token_ids: Tokens that end an answer, once the model is loaded.
        context_length: Tokens of prompt and answer together, once the model is loaded.
    """

    repeats_prompt = False
    accepts_token_ids = True
    gives_logprobs = True
    takes_logit_bias = True
    takes_stop_token_ids = True

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = None
        self.default_max_new_tokens = 256
        self.gives_prompt_logprobs = False
        self.takes_constraint = self.takes_thoughts = False
        self.context_length = self.vocab_size = 0
        self.end_token_ids: tuple[int, ...] = ()
        self._pool: ThreadPoolExecutor | None = None
        self._scoring: ThreadPoolExecutor | None = None

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the weights and starts the engine.

        Raises:
            ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
        """
        from deployments.hf_transformers.engine import TextEngine

        self._engine = TextEngine(cfg)
        self.tokenizer = self._engine.tokenizer
        self.default_max_new_tokens = self._engine.default_max_new_tokens
        self.gives_prompt_logprobs = self._engine.scores_prompts
        self.context_length = self._engine.context_length
        self.vocab_size = self._engine.vocab_size
        self.end_token_ids = tuple(self._engine.end_ids)
        has_compiler = importlib.util.find_spec("xgrammar") is not None
        self.takes_constraint = has_compiler and bool(self.end_token_ids)
        self.takes_thoughts = self.takes_constraint
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        # One thread: a fast tokenizer refuses two callers that need different settings.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")

    @property
    def ongoing(self) -> int:
        """Texts that are being made or wait."""
        return self._engine.ongoing if self._engine is not None else 0

    async def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Makes one text.

        Args:
            inputs: `text` and what else docs/transformers.md lists.

        Returns:
            `text`, `finish_reason` and `usage`; `logprobs` and `prompt_logprobs` where they are
            asked for.

        Raises:
            RequestError: An input is wrong.
            OverloadedError: The queue is full.
        """
        parts: list[str] = []
        last: dict[str, Any] = {}
        entries: dict[str, list[Any]] = {}
        jobs: list[Any] = []
        try:
            async with aclosing(self._items(inputs, jobs, whole=True)) as items:
                async for item in items:
                    parts.append(item["text"])
                    last = item
                    for name in ENTRIES:
                        if name in item:
                            entries.setdefault(name, []).extend(item[name])
        except asyncio.CancelledError:  # its client left
            add_tokens(0, sum(job.num_tokens for job in jobs))
            raise
        return {**last, **entries, "text": "".join(parts)}

    def stream(self, inputs: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`, the last with `finish_reason` and `usage`; errors as above."""
        return self._items(inputs, [], whole=False)

    async def _items(
        self, inputs: dict[str, Any], jobs: list[Any], *, whole: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields a text's items.

        Args:
            inputs: See `infer`.
            jobs: Gets the text that is being made.
            whole: Whether the text comes in one item, once it is complete.
        """
        engine, pool = self._loaded(), self._pool
        loop = asyncio.get_running_loop()
        call = await loop.run_in_executor(pool, engine.plan, inputs)
        if call.scores_prompt:
            scores = await loop.run_in_executor(self._scoring, engine.score, call)
            yield {"text": "", "prompt_logprobs": [score.to_entry() for score in scores]}
        job = engine.submit(call, whole=whole)
        jobs.append(job)
        try:
            while (text := await job.next()) is not None:
                yield (
                    {"text": text, **_entries(job)} if call.num_top is not None else {"text": text}
                )
            num_prompt = len(call.prompt)
            yield {
                "text": "",
                **(_entries(job) if call.num_top is not None else {}),
                "finish_reason": job.reason,
                **({} if job.stop is None else {"stop_reason": job.stop}),
                "usage": {
                    "prompt_tokens": num_prompt,
                    "completion_tokens": job.num_tokens,
                    "total_tokens": num_prompt + job.num_tokens,
                },
            }
        finally:
            engine.cancel(job)

    def check_health(self) -> None:
        """Raises when the engine is dead."""
        if self._engine is not None:
            self._engine.check_health()

    def close(self) -> None:
        """Ends all texts and frees the engine; safe to call twice."""
        engine, self._engine = self._engine, None
        for pool in (self._pool, self._scoring):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._scoring = None
        if engine is not None:
            engine.close()


class EmbeddingModel(EngineModel):
    """A model that turns texts into vectors; requests are batched.

    Attributes:
        tokenizer: The model's tokenizer, once it is loaded.
        accepts_token_ids: Texts may come as token ids.
        max_batch_size: Large, because the engine splits a batch by its tokens.
    """

    accepts_token_ids = True
    max_batch_size = DEFAULT_EMBEDDING_REQUESTS

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer: Any = None

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the weights; errors as in `TextModel.load`."""
        from deployments.hf_transformers.engine import EmbeddingEngine

        self._engine = EmbeddingEngine(cfg)
        self.tokenizer = self._engine.tokenizer

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the vector of one text; raises what `infer_batch` returns as an error."""
        found: dict[str, Any] = _only(self.infer_batch([inputs]))
        return found

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[dict[str, Any] | Exception]:
        """Returns the vectors of many texts; see `EmbeddingEngine.infer_batch`."""
        found: list[dict[str, Any] | Exception] = self._loaded().infer_batch(batch)
        return found


class PipelineModel(EngineModel):
    """One of transformers' pipelines; requests with the same parameters are batched.

    Attributes:
        operations: For speech recognition `transcription`, and `translation` where the model can:
            the routes of its own.
        sampling_rate: Samples a second that speech recognition takes.
        max_audio_s: Longest recording that it takes, in seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: tuple[str, ...] = ()
        self.sampling_rate = 16000
        self.max_audio_s = 0.0

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the weights; errors as in `TextModel.load`."""
        from deployments.hf_transformers.engine import PipelineEngine, SpeechEngine

        if cfg["serving"]["engine"].get("pipeline_task") != "automatic-speech-recognition":
            self._engine = PipelineEngine(cfg)
            return
        engine = SpeechEngine(cfg)
        self._engine = engine
        self.operations = ("transcription", "translation")[: 1 + engine.translates]
        self.sampling_rate = engine.sampling_rate
        self.max_audio_s = engine.settings.max_audio_s

    def batch_key(self, inputs: dict[str, Any]) -> str:
        """Returns what inputs must have in common to share a batch."""
        return str(self._loaded().batch_key(inputs))

    def infer(self, inputs: dict[str, Any]) -> Any:
        """Returns the outputs for one input; raises what `infer_batch` returns as an error."""
        return _only(self.infer_batch([inputs]))

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        """Returns the outputs for many inputs; see `PipelineEngine.infer_batch`."""
        found: list[Any] = self._loaded().infer_batch(batch)
        return found


def _entries(job: Any) -> dict[str, Any]:
    return {"logprobs": [entry.to_entry() for entry in job.take_logprobs()]}


def _only(answers: list[Any]) -> Any:
    answer = answers[0]
    if isinstance(answer, Exception):
        raise answer
    return answer
