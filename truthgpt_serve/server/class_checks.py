"""What a model class must look like; runs none of its code."""

from __future__ import annotations

import inspect

from truthgpt_serve.contract import Model
from truthgpt_serve.errors import RegistryError


def check_class(cls: type[Model]) -> None:
    """Refuses, before anything is loaded, a class whose `infer` is a generator."""
    infer = getattr(cls, "infer", None)
    if inspect.isgeneratorfunction(infer) or inspect.isasyncgenfunction(infer):
        raise RegistryError(
            f"{cls.__qualname__}.infer is a generator; name the method that yields `stream`, "
            "and return the whole output from `infer`"
        )
