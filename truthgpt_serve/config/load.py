"""Reads configurations from files, Serve arguments or mappings, with every fault at once.

`truthgpt_serve.checks` has the checks that need the model's family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from truthgpt_serve.config.auth import AuthArgs, AuthSection
from truthgpt_serve.config.base import show_value
from truthgpt_serve.config.cors import CorsSection
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.config.parse import SectionT, parse
from truthgpt_serve.config.paths import find_config, resolve_local
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.config.router import RouterConfig
from truthgpt_serve.config.source import MAX_FILE_BYTES, Source, check_length, read_yaml
from truthgpt_serve.config.variables import VariableError, expand
from truthgpt_serve.errors import ConfigError, Fault

SERVICE_KEYS = ("cors", "auth")
"""Keys of a model's `args` that say how its address is served, not what the model is."""


def read_file(
    path: Path,
    *,
    numbers: bool = True,
    shown: str | None = None,
    opener: Callable[[str, int], int] | None = None,
) -> tuple[Any, Source]:
    """Reads a YAML file.

    Args:
        path: The file.
        numbers: Read `5e-5` as a number; see `read_yaml`.
        shown: The name in faults, by default `path`.
        opener: Opens it, as that of `open`.

    Raises:
        ConfigError: Unreadable, or not YAML.
    """
    file = shown or str(path)
    try:
        with open(path, "rb", opener=opener) as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        check_length(content, file)
        text = content.decode()
    except OSError as error:
        raise ConfigError([Fault(file, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        fault = Fault(file, "is not valid YAML: not UTF-8 text", "save it as UTF-8")
        raise ConfigError([fault]) from error
    data, lines, written = read_yaml(text, file, numbers=numbers)
    folder = path.absolute().parent
    return data, Source(file, (), lines, folder, written, has_variables=True)


def read_named_file(path: str | Path, place: str | None = None) -> tuple[Any, Source]:
    """Finds and reads a YAML file; a name with variables in it is shown as it was written.

    Args:
        path: The file, as `find_config` takes it.
        place: Where it is named, for faults.

    Raises:
        ConfigError: There is no such file, or it cannot be read as YAML.
    """
    hidden = HiddenValues()
    hidden.add(str(path) if isinstance(path, Path) else path)
    try:
        file = find_config(path, place)
    except ConfigError as error:
        faults = [replace(fault, place=hidden.hide(fault.place)) for fault in error.faults]
        raise ConfigError(hidden.hide_faults(faults)) from None
    data, source = read_file(file, shown=hidden.hide(str(file)))
    return data, replace(source, hidden=hidden)


def parse_model(data: Any, source: Source) -> tuple[ModelConfig | None, list[Fault]]:
    """Checks a model's configuration against its schema.

    Returns:
        The configuration with local paths made absolute, and the faults. With faults it is what
        can still be checked further, or None.
    """
    config, faults, at = parse(ModelConfig, data, source)
    # Without its task or its model section, every further check would be about another model.
    if config is None or any(path[:1] in ((), ("task",), ("model",)) for path in at):
        return None, faults
    config._source = source
    if config.model.name_or_path is not None:
        config.model.name_or_path = resolve_local(config.model.name_or_path, source)
    config.model.adapter = [resolve_local(path, source) for path in config.model.adapter]
    for adapter in config.serving.adapters:
        adapter.path = resolve_local(adapter.path, source)
    if config.data.dataset is not None:
        config.data.dataset = _resolve_data(config.data.dataset, source)
    if config.data.eval_dataset is not None:
        config.data.eval_dataset = _resolve_data(config.data.eval_dataset, source)
    if config.training.prior is not None and config.training.prior.images is not None:
        config.training.prior.images = resolve_local(config.training.prior.images, source)
    if config.training.reward_model is not None:
        config.training.reward_model = resolve_local(config.training.reward_model, source)
    return config, faults


def _resolve_data(dataset: str | list[str], source: Source) -> str | list[str]:
    if isinstance(dataset, str):
        return resolve_local(dataset, source)
    return [resolve_local(name, source) for name in dataset]


def load_model_config(
    source: str | Path | Mapping[str, Any], *, place: str | None = None
) -> ModelConfig:
    """Returns the configuration of one model.

    Args:
        source: A YAML file, looked up in the working directory and then in `TRUTHGPT_CONFIG_DIR`
            (by default `configs`), or the same keys as a mapping.
        place: Name of the place in faults; by default the file's name.

    Raises:
        ConfigError: With every fault of the schema. What the family has to say about it is
            `truthgpt_serve.checks.check_model`.
    """
    if isinstance(source, Mapping):
        return _sound(*parse_model(source, Source(place or "configuration")))
    return _sound(*parse_model(*read_named_file(source, place)))


def load_model_args(args: Mapping[str, Any], *, place: str) -> ModelConfig:
    """Returns the configuration that a Serve application's `args` give.

    Args:
        args: Either `{"config": path}` or the configuration's own keys; `SERVICE_KEYS` may be
            among them.
        place: Name of the application, for faults.

    Raises:
        ConfigError: Both or neither are given, or see `load_model_config`.
    """
    source = Source(place, has_variables=True)
    faults = check_model_args(args, source)
    if faults:
        raise ConfigError(faults)
    keys = without_service_keys(args)
    if "config" in keys:
        return load_model_config(config_path(keys["config"], source), place=place)
    return _sound(*parse_model(keys, source))


def config_path(text: str, source: Source) -> str:
    """Returns the path of a model's file that its application's `args` give, with its variables.

    Raises:
        ConfigError: A variable is not set.
    """
    try:
        return expand(text)
    except VariableError as error:
        fault = Fault(source.at("config"), error.message, error.fix)
        raise ConfigError([fault]) from error


def load_model_cors(args: Mapping[str, Any], *, place: str) -> CorsSection:
    """Returns which web pages may use a model's own address, by its application's `args`.

    Raises:
        ConfigError: With every fault.
    """
    source = Source(place, has_variables=True)
    return _load(CorsSection, args.get("cors", {}), source.under("cors"))


def load_model_auth(args: Mapping[str, Any], *, place: str) -> AuthSection | None:
    """Returns who may use a model's own address, by its application's `args`; None: not said.

    Raises:
        ConfigError: With every fault.
    """
    given = {"auth": args.get("auth")}
    return _load(AuthArgs, given, Source(place, has_variables=True)).auth


def without_service_keys(args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a model's `args` without the keys that are not its configuration's."""
    return {key: value for key, value in args.items() if key not in SERVICE_KEYS}


def check_model_args(args: Any, source: Source) -> list[Fault]:
    """Returns the faults in how `args` name a configuration, not those inside it."""
    if not isinstance(args, Mapping):
        return [Fault(source.at(), f"must be a mapping, not {show_value(args)}")]
    keys = without_service_keys(args)
    if not keys:
        fix = "write config: models/<name>.yaml, or the model's keys"
        return [Fault(source.at(), "names no configuration", fix)]
    if "config" not in keys:
        return []
    path = keys["config"]
    faults = []
    if not isinstance(path, str) or not path:
        message = f"must be the path of a YAML file, not {show_value(path)}"
        faults.append(Fault(source.at("config"), message))
    others = [str(key) for key in keys if key != "config"]
    if others:
        message = f"is given together with {', '.join(others)}"
        fix = "put the keys into the file, or write them all here"
        faults.append(Fault(source.at("config"), message, fix))
    return faults


def load_router_args(args: Mapping[str, Any], *, place: str) -> RouterConfig:
    """Returns the router's configuration from its application's `args`, with their variables.

    Raises:
        ConfigError: With every fault.
    """
    return _load(RouterConfig, args, Source(place, has_variables=True))


def load_router_config(config: Mapping[str, Any]) -> RouterConfig:
    """Returns the router's configuration from its keys as they are.

    Raises:
        ConfigError: With every fault.
    """
    return _load(RouterConfig, config, Source("router"))


def load_playground_args(args: Mapping[str, Any], *, place: str) -> PlaygroundConfig:
    """Returns the playground's configuration from its application's `args`, with their variables.

    Raises:
        ConfigError: With every fault.
    """
    return _load(PlaygroundConfig, args, Source(place, has_variables=True))


def _load(kind: type[SectionT], data: Any, source: Source) -> SectionT:
    config, faults, _ = parse(kind, data, source)
    return _sound(config, faults)


def _sound(config: SectionT | None, faults: list[Fault]) -> SectionT:
    if config is None or faults:
        raise ConfigError(faults)
    return config
