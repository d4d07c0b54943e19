"""Runs a model in this process, without a server: what `truthgpt infer` and notebooks need.

Knows no HTTP and no Ray. The class's methods run in the caller's thread, one at a time.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.config import ModelConfig, load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError, RegistryError
from truthgpt_serve.registry import MODEL_REGISTRY

T = TypeVar("T")

Prepare = Callable[[Any, Any], Any]
"""Makes the inputs ready for the loaded model: gets both, and returns the inputs."""


def build_model(name: str, cfg: Mapping[str, Any] | None = None) -> Any:
    """Returns a loaded instance of the family `name`.

    The caller calls its methods, and `close()` at the end where it has one.

    Args:
        name: The family: a built-in one, another package's, or one that `register_model` added.
        cfg: The configuration as a nested dict; what is missing takes its default.

    Raises:
        RegistryError: There is no such family, or its class cannot be made.
        ConfigError: The configuration is invalid; it lists every fault.
    """
    spec = MODEL_REGISTRY.find(name)
    sections = dict(cfg or {})
    section = sections.get("model") or {}
    if isinstance(section, Mapping):
        sections["model"] = {**section, "family": name}
    config = load_model_config(sections, place=f"build_model({name!r})")
    return _sync(lambda: _load(spec, config))


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

    async def run() -> Any:
        model = await _load(*_resolve(config_path))
        try:
            given = inputs if prepare is None else prepare(model, inputs)
            return await _settle(model.infer(given))
        finally:
            await _close(model)

    return _sync(run)


def run_stream(
    config_path: str | Path, inputs: Any, *, prepare: Prepare | None = None
) -> Iterator[Any]:
    """Does the same, but yields the items of the class's `stream`.

    A class without `stream` gives the output of `infer` as the only item. To be called outside an
    event loop.
    """
    spec, config = _resolve(config_path)
    with asyncio.Runner() as runner:
        model = runner.run(_load(spec, config))
        try:
            given = inputs if prepare is None else prepare(model, inputs)
            if not callable(getattr(model, "stream", None)):
                yield runner.run(_settle(model.infer(given)))
                return
            yield from _items(runner, model.stream(given))
        finally:
            runner.run(_close(model))


def _items(runner: asyncio.Runner, source: Any) -> Iterator[Any]:
    if inspect.isawaitable(source):
        source = runner.run(_settle(source))
    if not hasattr(source, "__aiter__"):
        yield from source
        return
    iterator = aiter(source)
    try:
        while True:
            try:
                yield runner.run(_next(iterator))
            except StopAsyncIteration:
                return
    finally:
        if callable(close := getattr(iterator, "aclose", None)):
            runner.run(_settle(close()))


async def _next(iterator: Any) -> Any:
    return await anext(iterator)


def _resolve(config_path: str | Path) -> tuple[FamilySpec, ModelConfig]:
    config = load_model_config(config_path)
    faults = check_model(config)
    if faults:
        raise ConfigError(faults)
    return resolve_family(config), config


async def _load(spec: FamilySpec, config: ModelConfig) -> Any:
    cls = spec.load_class(config.task)
    model: Any
    try:
        model = cls()
    except TypeError as error:
        raise RegistryError(
            f"{cls.__qualname__}() failed: {error}; the class is made without arguments, "
            "so set-up belongs in `load(cfg)`"
        ) from error
    if callable(set_name := getattr(model, "set_name", None)):
        set_name(config.run_name)
    await _settle(model.load(config.to_cfg()))
    return model


async def _close(model: Any) -> None:
    if callable(close := getattr(model, "close", None)):
        await _settle(close())


async def _settle(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _sync(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end, beside an event loop that the caller may be in (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(function())
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(function()))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="truthgpt-infer")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
