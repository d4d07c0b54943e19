"""The text engine of one replica: weights, a way of batching, and the texts that are being made."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import transformers

from deployments.hf_transformers.attention import choose_attention
from deployments.hf_transformers.compilation import compile_model
from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.generation.backend import Backend, Update
from deployments.hf_transformers.generation.check import (
    TrialError,
    check_paged,
    expected_steps,
    run_trial,
    takes_padding,
    trial_prompts,
)
from deployments.hf_transformers.generation.decoding import TextDecoder
from deployments.hf_transformers.generation.fields import read_call
from deployments.hf_transformers.generation.job import TextCall, TextJob
from deployments.hf_transformers.generation.padded import PaddedBackend
from deployments.hf_transformers.generation.paged import PagedBackend
from deployments.hf_transformers.generation.plan import (
    plan_padding,
    plan_pages,
    plan_rows,
    read_info,
)
from deployments.hf_transformers.generation.sampling import TokenLogprob
from deployments.hf_transformers.generation.scoring import PromptScorer
from deployments.hf_transformers.loading import load_config, load_model, load_tokenizer, read_source
from truthgpt_serve.channel import Channel, ReaderGoneError, wake_all
from truthgpt_serve.device import describe_backend
from truthgpt_serve.errors import (
    RequestError,
    ServerError,
    UnavailableError,
    UnsupportedError,
    bad_setting,
)
from truthgpt_serve.queue_full import queue_full

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 20.0
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
        self.attention = choose_attention(wanted, model, lambda: _trial_logits(model))
        self._expected = [expected_steps(model, prompt) for prompt in trial_prompts(model)]
        self._scorer = self._make_scorer(model)
        self._backend = self._make_backend(cfg, model)
        if cfg["model_optim"]["compile"]:
            self._compile(model)
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

    # -- set-up

    def _make_backend(self, cfg: Mapping[str, Any], model: Any) -> Backend:
        settings = self._settings
        expected = self._expected
        if settings.batching != "padded" and settings.use_cache:
            problem = "its generation configuration has fields that only padded batches apply"
            if self._info.pages:
                try:
                    return self._paged(cfg, model, expected)
                except Exception as error:  # an architecture without a paged cache fails anyhow
                    problem = f"{type(error).__name__}: {error}"
            message = f"continuous batching does not work with {type(model).__name__}: {problem}"
            if settings.batching == "continuous":
                raise bad_setting("serving.engine.batching", message, "write auto or padded")
            logger.warning("%s; texts run in padded batches", message)
        return self._padded(cfg, model, expected)

    def _compile(self, model: Any) -> None:
        """Compiles the model, and warms it up with batches of one, of two and of many texts."""
        prompts = trial_prompts(model)
        batches = [prompts[:1], prompts, prompts * 2, prompts[:1] * 3]
        trials = [partial(run_trial, self._backend, batch) for batch in batches]
        try:
            compile_model(model, self._settings.compile_mode, trials)
        except BaseException:
            self._backend.close(CLOSE_TIMEOUT_S)
            raise

    def _paged(self, cfg: Mapping[str, Any], model: Any, expected: list[Any]) -> Backend:
        plan = plan_pages(cfg, self._settings, model, self._info.max_model_len)
        backend = PagedBackend(model, plan)
        try:
            check_paged(backend, model, expected)
        except BaseException:
            backend.close(CLOSE_TIMEOUT_S)
            raise
        return backend

    def _padded(self, cfg: Mapping[str, Any], model: Any, expected: list[Any]) -> Backend:
        backend = PaddedBackend(model, plan_padding(cfg, self._settings, self._info, mixed=True))
        try:
            if takes_padding(backend, model, expected):
                return backend
        except TrialError as error:
            backend.close(CLOSE_TIMEOUT_S)
            message = f"{type(model).__name__} does not generate: {error}"
            raise bad_setting("model.name_or_path", message) from error
        backend.close(CLOSE_TIMEOUT_S)
        logger.warning("padding changes this model's tokens: only equal lengths share a batch")
        backend = PaddedBackend(model, plan_padding(cfg, self._settings, self._info, mixed=False))
        run_trial(backend, trial_prompts(model)[:1])
        return backend

    def _make_scorer(self, model: Any) -> PromptScorer | None:
        """Returns what scores prompts, or None where its logits are not the model's own."""
        if self._info.encodes:
            return None
        try:
            scorer = PromptScorer(model, self._info.vocab_size)
        except Exception:  # weights of a kind that cannot be shared
            logger.warning("prompts have no log probabilities", exc_info=True)
            return None
        prompt, (tokens, logits) = trial_prompts(model)[1], self._expected[1]
        return scorer if scorer.agrees(prompt, tokens, logits) else None

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

    def submit(self, call: TextCall) -> TextJob:
        """Starts a text; its pieces go to the running event loop.

        Raises:
            OverloadedError: The queue is full.
            UnavailableError: The engine has stopped.
        """
        job = TextJob(call, f"text-{next(self._numbers)}", self._decode, Channel())
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
            wake_all(job.channel for job in touched if job.channel is not None)
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


def _trial_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = expected_steps(model, trial_prompts(model)[0])[1][0]
    return logits
