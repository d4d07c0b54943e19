"""What a model class must look like and how many requests it gets; runs none of its code."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from truthgpt_serve.contract import FamilySpec, Model
from truthgpt_serve.errors import RegistryError

MAX_ONGOING_BATCHED = 64
"""Default of `max_ongoing_requests` for a class that streams or batches."""


def check_class(cls: type[Model]) -> None:
    """Refuses, before anything is loaded, a class whose `infer` is a generator."""
    infer = getattr(cls, "infer", None)
    if inspect.isgeneratorfunction(infer) or inspect.isasyncgenfunction(infer):
        raise RegistryError(
            f"{cls.__qualname__}.infer is a generator; name the method that yields `stream`, "
            "and return the whole output from `infer`"
        )


def limits(spec: FamilySpec, cls: type[Model], cfg: Mapping[str, Any]) -> tuple[int, int]:
    """Returns how many requests may run, and how many more may wait, in one replica."""
    serving = cfg.get("serving") or {}
    ongoing = serving.get("max_ongoing_requests")
    if ongoing is None and spec.max_ongoing_requests is not None:
        ongoing = spec.max_ongoing_requests(cfg)
    if ongoing is None:
        many = any(callable(getattr(cls, method, None)) for method in ("stream", "infer_batch"))
        ongoing = MAX_ONGOING_BATCHED if many else 1
    queued = serving.get("max_queued_requests")
    return int(ongoing), 2 * int(ongoing) if queued is None else int(queued)
