"""Chooses how the texts of a model share its forward passes: continuous batching, else padded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
    backend = _choose(cfg, settings, model, info, expected)
    if cfg["model_optim"]["compile"]:
        _compile(backend, model, settings.compile_mode)
    return backend


def _choose(
    cfg: Mapping[str, Any],
    settings: TransformersSettings,
    model: Any,
    info: TextInfo,
    expected: list[Any],
) -> Backend:
    if settings.batching != "padded" and settings.use_cache:
        problem = "its generation configuration has fields that only padded batches apply"
        if info.pages:
            try:
                return _paged(cfg, settings, model, info, expected)
            except Exception as error:  # an architecture without a paged cache fails anyhow
                problem = f"{type(error).__name__}: {error}"
        message = f"continuous batching does not work with {type(model).__name__}: {problem}"
        if settings.batching == "continuous":
            raise bad_setting("serving.engine.batching", message, "write auto or padded")
        logger.warning("%s; texts run in padded batches", message)
    return _padded(cfg, settings, model, info, expected)


def _paged(
    cfg: Mapping[str, Any],
    settings: TransformersSettings,
    model: Any,
    info: TextInfo,
    expected: list[Any],
) -> Backend:
    backend = PagedBackend(model, plan_pages(cfg, settings, model, info.max_model_len))
    try:
        check_paged(backend, model, expected)
    except BaseException:
        backend.close(CLOSE_TIMEOUT_S)
        raise
    return backend


def _padded(
    cfg: Mapping[str, Any],
    settings: TransformersSettings,
    model: Any,
    info: TextInfo,
    expected: list[Any],
) -> Backend:
    backend = PaddedBackend(model, plan_padding(cfg, settings, info, mixed=True))
    try:
        if takes_padding(backend, model, expected):
            return backend
    except TrialError as error:
        backend.close(CLOSE_TIMEOUT_S)
        message = f"{type(model).__name__} does not generate: {error}"
        raise bad_setting("model.name_or_path", message) from error
    backend.close(CLOSE_TIMEOUT_S)
    logger.warning("padding changes this model's tokens: only equal lengths share a batch")
    backend = PaddedBackend(model, plan_padding(cfg, settings, info, mixed=False))
    run_trial(backend, trial_prompts(model)[:1])
    return backend


def _compile(backend: Backend, model: Any, mode: str) -> None:
    """Compiles the model, and warms it up with batches of one, of two and of many texts."""
    prompts = trial_prompts(model)
    batches = [prompts[:1], prompts, prompts * 2, prompts[:1] * 3]
    try:
        compile_model(model, mode, [partial(run_trial, backend, batch) for batch in batches])
    except BaseException:
        backend.close(CLOSE_TIMEOUT_S)
        raise
