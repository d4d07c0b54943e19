"""Checks of a configuration that need the model's family.

Imports families' specifications and a user's own module, never an engine, and starts nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import chain

from pydantic import BaseModel, ValidationError

from truthgpt_serve.adapter_files import find_adapter_problem, other_settings
from truthgpt_serve.config.base import show_value
from truthgpt_serve.config.faults import faults_of, in_file_order, known_paths, places, unknown_key
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.config.paths import expand, must_be_local
from truthgpt_serve.config.source import Source, parse_dotted
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError, Fault, RegistryError
from truthgpt_serve.model_files import find_problems, has_weights
from truthgpt_serve.registry import MODEL_REGISTRY, import_user_module

CUSTOM_FAMILY = "custom"
"""The family name that means: the one class that `model.import` registers."""


def resolve_family(config: ModelConfig) -> FamilySpec:
    """Returns the family of a configuration, after importing the module that it names.

    `custom` is replaced by the name of the one class that the module registers.

    Raises:
        ConfigError: The module cannot be imported, registers no or several classes for `custom`,
            or there is no such family; the message lists the known ones.
    """
    source = config.source
    registered: frozenset[str] = frozenset()
    if config.model.import_ is not None:
        try:
            registered = import_user_module(config.model.import_)
        except RegistryError as error:
            raise ConfigError([Fault(source.at("model", "import"), error.message)]) from error
    if config.family == CUSTOM_FAMILY:
        config.model.family = _only_family(registered, config)
    try:
        return MODEL_REGISTRY.find(config.family)
    except RegistryError as error:
        raise ConfigError([Fault(source.at("model", "family"), error.message)]) from error
    except (ImportError, AttributeError, SyntaxError) as error:
        message = f"{config.family!r} cannot be imported ({type(error).__name__}: {error})"
        fix = "reinstall the package that brings it"
        raise ConfigError([Fault(source.at("model", "family"), message, fix)]) from error


def _only_family(registered: frozenset[str], config: ModelConfig) -> str:
    source, module = config.source, config.model.import_
    if module is None:
        message = "custom needs model.import, the module that registers your class"
        fix = "set model.import, or name a family"
        raise ConfigError([Fault(source.at("model", "family"), message, fix)])
    if not registered:
        message = f"{module} registers no model class"
        fix = "decorate the class with @register_model(name)"
        raise ConfigError([Fault(source.at("model", "import"), message, fix)])
    if len(registered) > 1:
        names = sorted(registered)
        message = f"custom is ambiguous: {module} registers {', '.join(names)}"
        fix = f"write the one that is meant, such as family: {names[0]}"
        raise ConfigError([Fault(source.at("model", "family"), message, fix)])
    return next(iter(registered))


def check_model(
    config: ModelConfig, *, place: str | None = None, for_training: bool = False
) -> list[Fault]:
    """Returns what is wrong with a configuration beyond its schema.

    Args:
        config: A configuration that satisfies the schema.
        place: Name of its file or application in the faults; by default where it was read.
        for_training: Whether it is to be trained, which may begin without weights.
    """
    source = config.source if place is None else replace(config.source, file=place)
    faults = [*_check_adapters(config, source), *_check_aliases(config, source)]
    try:
        spec = resolve_family(config)
    except ConfigError as error:
        faults = [*_renamed(error.faults, config.source, source), *faults]
        return source.hidden.hide_faults(faults)
    engine = _check_engine(config, spec, source)
    faults += [
        *_check_task(config, spec, source),
        *_check_weights(config, spec, source),
        *_check_lora(config, spec, source),
        *_check_model_adapters(config, spec, source, for_training=for_training),
        *_check_nodes(config, spec, source),
        *chain.from_iterable(engine.values()),
        *_check_by_family(config, spec, source, engine),
    ]
    place = source.at("model", "name_or_path")
    if not for_training and not any(fault.place == place for fault in faults):
        faults += _check_there_are_weights(config, spec, source)
    return source.hidden.hide_faults(in_file_order(faults, source))


def _renamed(faults: list[Fault], old: Source, new: Source) -> list[Fault]:
    return [replace(fault, place=new.file + fault.place[len(old.file) :]) for fault in faults]


def _check_task(config: ModelConfig, spec: FamilySpec, source: Source) -> Iterator[Fault]:
    if config.task not in spec.tasks:
        message = f"family {spec.name!r} cannot do {config.task!r}"
        yield Fault(source.at("task"), message, f"it can do {', '.join(spec.tasks)}")


def _check_weights(config: ModelConfig, spec: FamilySpec, source: Source) -> Iterator[Fault]:
    weights = config.model.name_or_path
    place = source.at("model", "name_or_path")
    if weights is None:
        if spec.needs_weights:
            fix = "write a hub name or a local folder"
            yield Fault(place, f"is required by family {spec.name!r}", fix)
    elif missing := _find_missing(config, source):
        yield missing
    elif spec.needs_weights and expand(weights).is_dir():
        problems = find_problems(expand(weights))
        yield from (Fault(place, message, fix) for message, fix in problems)


def require_weights(config: ModelConfig) -> None:
    """Checks that this machine has what `model.name_or_path` names, also when a replica starts.

    Raises:
        ConfigError: It was removed, or only other machines have it.
    """
    if missing := _find_missing(config, config.source):
        raise ConfigError([missing])


def _find_missing(config: ModelConfig, source: Source) -> Fault | None:
    weights = config.model.name_or_path
    if weights is None or not _is_missing(weights):
        return None
    place = source.at("model", "name_or_path")
    return Fault(place, f"{weights!r} does not exist", "correct the path, or make the model")


def _check_there_are_weights(
    config: ModelConfig, spec: FamilySpec, source: Source
) -> Iterator[Fault]:
    folder = expand(config.model.name_or_path or "/dev/null")
    reads_files = config.serving.engine.get("load_format") in _FORMATS_IN_FILES
    if spec.needs_weights and reads_files and folder.is_dir() and not has_weights(folder):
        place = source.at("model", "name_or_path")
        yield Fault(place, f"{str(folder)!r} has no weights", "put their files into it")


_FORMATS_IN_FILES = (None, "auto", "hf", "safetensors", "pt")
"""Values of an engine's `load_format` that read weights in the model's folder."""


def _is_missing(path: str) -> bool:
    return must_be_local(path) and not expand(path).exists()


def _check_lora(config: ModelConfig, spec: FamilySpec, source: Source) -> Iterator[Fault]:
    if spec.takes_adapters:
        return
    message = f"family {spec.name!r} has no LoRA adapters"
    if config.model_optim.lora.enabled and not spec.adds_adapters:
        key = ("model", "adapter") if config.model.adapter else ("model_optim", "lora", "enabled")
        yield Fault(source.at(*key), message, "remove it, or use another family")
    if config.serving.adapters:
        if spec.adds_adapters:
            message = f"family {spec.name!r} serves no adapters beside the model"
            fix = "write the one to serve as model.adapter, or use family vllm"
            yield Fault(source.at("serving", "adapters"), message, fix)
            return
        yield Fault(source.at("serving", "adapters"), message, "remove them, or use another family")


def _check_model_adapters(
    config: ModelConfig, spec: FamilySpec, source: Source, *, for_training: bool
) -> Iterator[Fault]:
    """Checks `model.adapter`: its files, its base, and what `model_optim.lora` says of it."""
    if config.model.adapter and spec.takes_adapters and not spec.adds_adapters and not for_training:
        message = f"family {spec.name!r} adds no adapter to the weights"
        fix = "list it in serving.adapters, or make one model of both: truthgpt merge"
        yield Fault(source.at("model", "adapter"), message, fix)
    base = expand(config.model.name_or_path) if config.model.name_or_path else None
    is_image = config.task == "image-generation"
    for index, path in enumerate(config.model.adapter):
        place = source.at("model", "adapter", index)
        if _is_missing(path):
            yield Fault(place, f"{path!r} does not exist", "correct the path")
        elif expand(path).exists():
            problem = find_adapter_problem(expand(path), base, is_image=is_image)
            if problem is not None:
                yield Fault(place, *problem)
    if for_training and config.model.adapter and not config.model_optim.lora.stack:
        yield from _check_trained_further(config, source)


def _check_trained_further(config: ModelConfig, source: Source) -> Iterator[Fault]:
    lora, folder = config.model_optim.lora, expand(config.model.adapter[-1])
    given = {key: getattr(lora, key) for key in lora.model_fields_set - {"enabled", "stack"}}
    for key, own in other_settings(folder, given):
        message = f"{show_value(given[key])} is not {show_value(own)}, which {folder} was made with"
        fix = "remove it, for the adapter is trained further as it is, or write stack: true"
        yield Fault(source.at("model_optim", "lora", key), message, fix)


def _check_nodes(config: ModelConfig, spec: FamilySpec, source: Source) -> Iterator[Fault]:
    if config.hardware.span_nodes and not spec.tensor_parallel:
        message = f"family {spec.name!r} has no engine that spans nodes"
        yield Fault(source.at("hardware", "span_nodes"), message, "remove it, or use family vllm")
    gpus = config.hardware.gpus
    several = spec.tensor_parallel and isinstance(gpus, (int, float)) and gpus > 1
    if several and config.serving.max_replicas_per_node is not None:
        message = f"has no effect on engines of {gpus} GPUs, which Ray places as a group"
        yield Fault(source.at("serving", "max_replicas_per_node"), message, "remove it")


def _check_adapters(config: ModelConfig, source: Source) -> Iterator[Fault]:
    names: dict[str, int] = {}
    for index, adapter in enumerate(config.serving.adapters):
        first = names.setdefault(adapter.name, index)
        if first != index:
            message = f"{adapter.name!r} is also the name of serving.adapters[{first}]"
            place = source.at("serving", "adapters", index, "name")
            yield Fault(place, message, "give each adapter a name of its own")
        if _is_missing(adapter.path):
            place = source.at("serving", "adapters", index, "path")
            yield Fault(place, f"{adapter.path!r} does not exist", "correct the path")


def _check_aliases(config: ModelConfig, source: Source) -> Iterator[Fault]:
    taken = {
        adapter.name: f"serving.adapters[{index}]"
        for index, adapter in enumerate(config.serving.adapters)
    }
    for index, alias in enumerate(config.serving.aliases):
        here = f"serving.aliases[{index}]"
        if (first := taken.setdefault(alias, here)) != here:
            message = f"{alias!r} is also the name of {first}"
            yield Fault(source.at("serving", "aliases", index), message, "keep one of them")


def _check_engine(config: ModelConfig, spec: FamilySpec, source: Source) -> dict[str, list[Fault]]:
    """Returns the faults of each `serving.engine` key by the family's own model of them."""
    model = spec.engine_config
    if model is None:
        return {}
    at = source.under("serving", "engine")
    faults: dict[str, list[Fault]] = {}
    known = known_paths(model)
    if model.model_config.get("extra") != "allow":
        names = {path[0] for path in known if len(path) == 1} | set(model.model_fields)
        for key in config.serving.engine:
            if key not in names:
                fault = unknown_key((key,), known, at, shown="serving.engine.")
                faults[key] = [_with_family(fault, spec, model)]
    try:
        model.model_validate({k: v for k, v in config.serving.engine.items() if k not in faults})
    except ValidationError as error:
        for path in places(error):
            faults.setdefault(str(path[0]) if path else "", [])
        faults.setdefault("", []).extend(faults_of(error, model, at))
    return faults


def _with_family(fault: Fault, spec: FamilySpec, model: type[BaseModel]) -> Fault:
    message = f"{fault.message} of family {spec.name!r}"
    if len(model.model_fields) > 20 and fault.fix.startswith("valid keys"):
        return replace(fault, message=message, fix="see the engine's own documentation")
    return replace(fault, message=message)


def _check_by_family(
    config: ModelConfig, spec: FamilySpec, source: Source, faulty_engine_keys: Collection[str]
) -> Iterator[Fault]:
    if spec.check is None:
        return
    cfg = config.to_cfg()
    # The family's check may rely on arguments that its own model accepts.
    for key in faulty_engine_keys:
        cfg["serving"]["engine"].pop(key, None)
    for fault in spec.check(cfg):
        yield replace(fault, place=source.at(*parse_dotted(fault.place)))
