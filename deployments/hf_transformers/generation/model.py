"""The text engine of one replica: weights, a way of batching, and the texts that are being made."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Mapping
from typing import Any

import transformers

from deployments.hf_transformers.attention import choose_attention
from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.generation.backend import Update
from deployments.hf_transformers.generation.batching import CLOSE_TIMEOUT_S, create_backend
from deployments.hf_transformers.generation.check import (
    expected_steps,
    trial_logits,
    trial_prompts,
)
from deployments.hf_transformers.generation.decoding import TextDecoder
from deployments.hf_transformers.generation.fields import read_call
from deployments.hf_transformers.generation.job import TextCall, TextJob
from deployments.hf_transformers.generation.plan import plan_rows, read_info
from deployments.hf_transformers.generation.sampling import TokenLogprob
from deployments.hf_transformers.generation.scoring import create_scorer
from deployments.hf_transformers.loading import load_config, load_model, load_tokenizer, read_source
from truthgpt_serve.channel import Channel, ReaderGoneError, wake_all
from truthgpt_serve.device import describe_backend
from truthgpt_serve.errors import (
    RequestError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from truthgpt_serve.queue_full import queue_full

logger = logging.getLogger(__name__)

POLL_S = 0.2


class TextEngine:
    """Loads a language model and makes texts with it. All methods are thread-safe.

    Args:
        cfg: The whole configuration as a nested dict.

    Attributes:
        tokenizer: The model's tokenizer.
        default_max_new_tokens: Tokens of an answer when the request does not say.
        attention: The attention that computes.
        acceleration: The model's backend, for its card.
        batching: `continuous` or `padded`.
        context_length: Tokens of prompt and answer together.
        scores_prompts: Whether prompts have log probabilities.
        vocab_size: Logits of one position.
        end_ids: Tokens that end an answer.

    Raises:
        ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._settings = settings = TransformersSettings.model_validate(cfg["serving"]["engine"])
        source = read_source(cfg)
        config = load_config(source)
        self.tokenizer = load_tokenizer(source)
        self._decode = TextDecoder(self.tokenizer)
        kind = "AutoModelForSeq2SeqLM" if config.is_encoder_decoder else "AutoModelForCausalLM"
        model = load_model(getattr(transformers, kind), source, config)
        self._info = read_info(model, self.tokenizer, settings)
        wanted = str(cfg["model_optim"]["attention"])
        self.attention = choose_attention(wanted, model, lambda: trial_logits(model))
        expected = [expected_steps(model, prompt) for prompt in trial_prompts(model)]
        self._scorer = create_scorer(model, self._info, expected[1])
        self._backend = create_backend(cfg, settings, model, self._info, expected)
        self.batching = self._backend.kind
        self.acceleration = {
            **describe_backend(model.device, model.dtype, self.attention, cfg["model_optim"]),
            "batching": self.batching,
        }
        logger.info("attention: %s; batching: %s", self.attention, self.batching)
        self._max_len = self._info.max_model_len
        if self._backend.max_tokens is not None:
            self._max_len = min(self._max_len, self._backend.max_tokens)
        self.context_length = self._max_len
        self.vocab_size, self.end_ids = self._info.vocab_size, self._info.defaults.end_ids
        self.scores_prompts = self._scorer is not None
        tokens = settings.default_max_new_tokens
        self.default_max_new_tokens = min(tokens, settings.max_new_tokens or tokens)
        self._max_jobs = sum(plan_rows(cfg, settings))
        self._random = random.Random(int(cfg["seed"]))
        self._numbers = itertools.count()
        self._jobs: dict[str, TextJob] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._dispatch, name="texts", daemon=True)
        self._thread.start()

    # -- requests

    def plan(self, inputs: Mapping[str, Any]) -> TextCall:
        """Checks and tokenizes a request; a long prompt takes tens of milliseconds.

        Raises:
            RequestError: An input is wrong, or the prompt is too long.
        """
        return read_call(
            inputs,
            self._info,
            self._encode,
            default_tokens=self.default_max_new_tokens,
            max_tokens=self._settings.max_new_tokens,
            max_len=self._max_len,
            next_seed=lambda: self._random.getrandbits(63),
        )

    def score(self, call: TextCall) -> list[TokenLogprob]:
        """Returns the log probabilities of a prompt; takes as long as its forward pass.

        Raises:
            UnsupportedError: The model has none for prompts.
        """
        if self._scorer is None:
            message = "`prompt_logprobs` is set, but this model gives none of prompts"
            raise UnsupportedError(message, param="prompt_logprobs")
        return self._scorer.score(call.prompt, call.num_top or 0)

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=special)
        return ids

    def submit(self, call: TextCall, *, whole: bool = False) -> TextJob:
        """Starts a text; its pieces go to the running event loop.

        Args:
            call: What is asked for.
            whole: Whether the event loop is woken only at the end: to wake it for each token takes
                time from the model's own thread.

        Raises:
            OverloadedError: The queue is full.
            UnavailableError: The engine has stopped.
        """
        job = TextJob(call, f"text-{next(self._numbers)}", self._decode, Channel(), whole=whole)
        with self._lock:
            if len(self._jobs) >= self._max_jobs:
                raise queue_full("this model", len(self._jobs))
            self._jobs[job.name] = job
        try:
            self._backend.submit(job)
        except BaseException:
            self.cancel(job)
            raise
        return job

    def cancel(self, job: TextJob) -> None:
        """Gives up a text; without effect on one that has ended."""
        job.fail(UnavailableError("the text was cancelled"))
        with self._lock:
            present = self._jobs.pop(job.name, None)
        if present is not None:
            self._backend.cancel(job)

    @property
    def ongoing(self) -> int:
        """Texts that are being made or wait."""
        return len(self._jobs)

    # -- the thread that turns tokens into text

    def _dispatch(self) -> None:
        while not self._closing.is_set():
            touched = [job for update in self._backend.poll(POLL_S) if (job := self._take(update))]
            failure = self._backend.failure()
            if failure is not None and not self._closing.is_set():
                touched += self._fail_all(ServerError(f"the engine failed: {failure}"))
            wake_all(job.channel for job in touched if job.channel is not None and job.is_due)
            if not threading.main_thread().is_alive():
                # The process ends without `close`: transformers' thread would keep it alive.
                self._backend.close(CLOSE_TIMEOUT_S)
                return

    def _take(self, update: Update) -> TextJob | None:
        job = self._jobs.get(update.name)
        if job is None:
            return None
        follower = job.row.follower
        if follower is not None and follower.problem is not None:
            job.fail(RequestError(follower.problem))
        try:
            for token in update.tokens:
                job.take(token)
        except ReaderGoneError:
            job.fail(UnavailableError("the text has lost its reader"))
        except Exception as error:  # a tokenizer's decoder
            logger.exception("a text cannot be decoded")
            job.fail(ServerError(f"the tokens cannot be decoded: {error}"))
        if update.error is not None:
            job.fail(ServerError(f"the model failed: {update.error}"))
        if job.finished:
            self.cancel(job)
        return job

    def _fail_all(self, error: BaseException) -> list[TextJob]:
        with self._lock:
            jobs = list(self._jobs.values())
            self._jobs.clear()
        for job in jobs:
            job.fail(error)
        return jobs

    def check_health(self) -> None:
        """Raises when one of the engine's threads is dead."""
        failure = self._backend.failure()
        if failure is not None or not self._thread.is_alive():
            raise UnavailableError(f"the text engine has stopped: {failure}")

    def close(self) -> None:
        """Ends all texts and frees the memory; safe to call twice."""
        self._closing.set()
        failed = self._fail_all(UnavailableError("the model is shutting down"))
        wake_all(job.channel for job in failed if job.channel is not None)
        self._backend.close(CLOSE_TIMEOUT_S)
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT_S)
