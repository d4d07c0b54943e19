"""Builds a model of any family, for callers with and without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.config import ModelConfig, load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.registry import MODEL_REGISTRY
from truthgpt_serve.runner.async_model import AsyncLocalModel
from truthgpt_serve.runner.model import LocalModel

Prepare = Callable[[Any, Any], Any]
"""Makes the inputs ready for the loaded model: gets both, and returns the inputs."""


def build_model(name: str, cfg: Mapping[str, Any] | None = None) -> LocalModel:
    """Loads a model of the family `name`, to be used without an event loop.

    `infer`, `stream` and `close` of what it returns are synchronous for every family. It can be
    used inside a running event loop too, such as a notebook's.

    Args:
        name: The family: a built-in one, another package's, or one that `register_model` added.
        cfg: The configuration as a nested dict; what is missing takes its default.

    Raises:
        RegistryError: There is no such family, or its class cannot be made.
        ConfigError: The configuration is invalid; it lists every fault.
    """
    return LocalModel.load(*_find(name, cfg))


async def build_async_model(name: str, cfg: Mapping[str, Any] | None = None) -> AsyncLocalModel:
    """Loads a model of the family `name`, to be used on the running event loop.

    `infer` and `close` of what it returns are coroutines and `stream` is an asynchronous generator
    for every family. Blocking families run in a thread, one call at a time.

    Arguments and errors are those of `build_model`.
    """
    return await AsyncLocalModel.load(*_find(name, cfg))


def run_infer(config_path: str | Path, inputs: Any, *, prepare: Prepare | None = None) -> Any:
    """Loads the model of a YAML file, answers one request and closes the model.

    Args:
        config_path: The YAML file, found as `load_model_config` says.
        inputs: What the class's `infer` takes.
        prepare: Makes the inputs ready once the model is loaded; None takes them as they are.

    Raises:
        ConfigError: The configuration is invalid; it lists every fault.
        Exception: Whatever the class or `prepare` raises.
    """
    with LocalModel.load(*_resolve(config_path)) as model:
        return model.infer(inputs if prepare is None else prepare(model.instance, inputs))


def run_stream(
    config_path: str | Path, inputs: Any, *, prepare: Prepare | None = None
) -> Generator[Any, None, None]:
    """Does the same, but yields the items of the class's `stream`.

    A class without `stream` gives the output of `infer` as the only item.
    """
    with LocalModel.load(*_resolve(config_path)) as model:
        yield from model.stream(inputs if prepare is None else prepare(model.instance, inputs))


def _find(name: str, cfg: Mapping[str, Any] | None) -> tuple[FamilySpec, ModelConfig]:
    spec = MODEL_REGISTRY.find(name)
    sections = dict(cfg or {})
    section = sections.get("model") or {}
    if isinstance(section, Mapping):
        sections["model"] = {**section, "family": name}
    return spec, load_model_config(sections, place=f"build_model({name!r})")


def _resolve(config_path: str | Path) -> tuple[FamilySpec, ModelConfig]:
    config = load_model_config(config_path)
    faults = check_model(config)
    if faults:
        raise ConfigError(faults)
    return resolve_family(config), config
