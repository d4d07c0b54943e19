"""Chooses how the texts of a model share its forward passes: continuous batching, else padded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from deployments.hf_transformers.compilation import compile_model
from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.generation.backend import Backend
from deployments.hf_transformers.generation.check import (
    TrialError,
    check_paged,
    run_trial,
    takes_padding,
    trial_prompts,
)
from deployments.hf_transformers.generation.padded import PaddedBackend
from deployments.hf_transformers.generation.paged import PagedBackend
from deployments.hf_transformers.generation.plan import TextInfo, plan_padding, plan_pages
from truthgpt_serve.errors import bad_setting

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 20.0


def create_backend(
    cfg: Mapping[str, Any],
    settings: TransformersSettings,
    model: Any,
    info: TextInfo,
    expected: list[Any],
) -> Backend:
    """Starts a way of batching that gives what the model alone gives.

    The model is compiled for it if that is asked for.

    Args:
        cfg: The whole configuration.
        settings: Its `serving.engine`.
        model: A loaded model of transformers.
        info: What requests need to know of it.
        expected: What the model gives alone for each of the trial prompts.

    Raises:
        ConfigError: The way that is asked for does not work with this model.
    """
    backend = _Choice(cfg, settings, model, info, expected).create()
    if cfg["model_optim"]["compile"]:
        _compile(backend, model, settings.compile_mode)
    return backend


@dataclass(frozen=True, slots=True)
class _Choice:
    """The ways of batching for one model; see `create_backend`."""

    cfg: Mapping[str, Any]
    settings: TransformersSettings
    model: Any
    info: TextInfo
    expected: list[Any]

    def create(self) -> Backend:
        if self.settings.batching == "padded" or not self.settings.use_cache:
            return self._padded()
        problem = "its generation configuration has fields that only padded batches apply"
        if self.info.pages:
            try:
                return self._paged()
            except Exception as error:  # an architecture without a paged cache fails anyhow
                problem = f"{type(error).__name__}: {error}"
        name = type(self.model).__name__
        message = f"continuous batching does not work with {name}: {problem}"
        if self.settings.batching == "continuous":
            raise bad_setting("serving.engine.batching", message, "write auto or padded")
        logger.warning("%s; texts run in padded batches", message)
        return self._padded()

    def _paged(self) -> Backend:
        plan = plan_pages(self.cfg, self.settings, self.model, self.info.max_model_len)
        backend = PagedBackend(self.model, plan)
        try:
            check_paged(backend, self.model, self.expected)
        except BaseException:
            backend.close(CLOSE_TIMEOUT_S)
            raise
        return backend

    def _padded(self) -> Backend:
        backend = self._start_padded(mixed=True)
        try:
            if takes_padding(backend, self.model, self.expected):
                return backend
        except TrialError as error:
            backend.close(CLOSE_TIMEOUT_S)
            message = f"{type(self.model).__name__} does not generate: {error}"
            raise bad_setting("model.name_or_path", message) from error
        backend.close(CLOSE_TIMEOUT_S)
        logger.warning("padding changes this model's tokens: only equal lengths share a batch")
        backend = self._start_padded(mixed=False)
        run_trial(backend, trial_prompts(self.model)[:1])
        return backend

    def _start_padded(self, *, mixed: bool) -> PaddedBackend:
        plan = plan_padding(self.cfg, self.settings, self.info, mixed=mixed)
        return PaddedBackend(self.model, plan)


def _compile(backend: Backend, model: Any, mode: str) -> None:
    """Compiles the model, and warms it up with batches of one, of two and of many texts."""
    prompts = trial_prompts(model)
    batches = [prompts[:1], prompts, prompts * 2, prompts[:1] * 3]
    try:
        compile_model(model, mode, [partial(run_trial, backend, batch) for batch in batches])
    except BaseException:
        backend.close(CLOSE_TIMEOUT_S)
        raise
