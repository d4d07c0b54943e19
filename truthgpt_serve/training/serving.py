"""How a result is served: the `args` of an application, and the adapter beside its model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_args
from truthgpt_serve.config.serving import ServingSection
from truthgpt_serve.config.training import METHODS
from truthgpt_serve.errors import ConfigError, RegistryError
from truthgpt_serve.registry import MODEL_REGISTRY
from truthgpt_serve.training.memory.lora import adapters_below
from truthgpt_serve.training.shown_config import HIDDEN

ADAPTER_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
"""What marks a folder as an adapter: of peft, and of a Diffusers pipeline."""
CLASSIFIER = {"pipeline_task": "text-classification"}
_TRANSFORMERS = "hf-transformers"
_OF_ONE_MODEL = ("adapters", "aliases")
"""Keys of `serving` that another model cannot take over."""


@dataclass(frozen=True, slots=True)
class Served:
    """How a result is served.

    Attributes:
        name: The model name that clients send.
        args: The keys of the application that serves it: a model's configuration.
        adapter: Its entry of `serving.adapters`, where it is served beside its base, else None.
    """

    name: str
    args: dict[str, Any]
    adapter: dict[str, str] | None = None

    @property
    def application_name(self) -> str:
        """The application's name: an adapter has its own, beside that of its base."""
        return f"{self.name}-base" if self.adapter else self.name

    @property
    def application(self) -> dict[str, Any]:
        """The entry of a Serve file's `applications`."""
        return {
            "name": self.application_name,
            "route_prefix": f"/models/{self.application_name}",
            "import_path": "truthgpt_serve.app:model",
            "args": self.args,
        }

    def lines(self) -> list[str]:
        """Returns the entry of `applications` as lines of YAML."""
        return _yaml([self.application])

    def adapter_lines(self) -> list[str]:
        """Returns what goes into the YAML of the adapter's model, where that is served already."""
        return _yaml({"serving": {"adapters": [self.adapter]}}) if self.adapter else []


def is_adapter(folder: Path) -> bool:
    """Returns whether a folder holds an adapter rather than a model."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def serving_of(record: Mapping[str, Any], folder: Path, name: str | None = None) -> Served:
    """Returns how a result is served: the first way that the families' own checks find sound.

    Args:
        record: The run's `run.json`.
        folder: The result's.
        name: The model's name; by default the run's, as far as it can be one.
    """
    config = record["config"]
    name = name or model_name(_run_name(config, folder))
    ways = [Served(name, *way) for way in _ways(config, folder, name)]
    return next((way for way in ways if _is_sound(way.args)), ways[0])


def _run_name(config: Mapping[str, Any], folder: Path) -> str:
    """Returns the run's name; one with variables in it is known only by the run's folder."""
    given = str(config.get("run_name") or "")
    return folder.parent.name if not given or "${" in given else given


def model_name(text: str) -> str:
    """Returns a text as the name of a model."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100]
    return f"{name}-model".strip("-") if name in ("models", "v1", "v2", "ui", "") else name


def _is_sound(args: Mapping[str, Any]) -> bool:
    try:
        return not check_model(load_model_args(args, place="args"))
    except ConfigError:
        return False


def _ways(
    config: Mapping[str, Any], folder: Path, name: str
) -> Iterator[tuple[dict[str, Any], dict[str, str] | None]]:
    """Yields each way to serve a result, the best first."""
    base = _keys(config, config["model"]["family"])
    component = config["training"].get("component")
    learned = {"controlnet": str(folder), "textual_inversion": [str(folder)]}
    if config["task"] == "image-generation" and component in learned:
        yield _with(base, ("serving", "engine", component), learned[component]), None
    elif not is_adapter(folder):
        yield _whole(config, folder), None
    else:
        below = adapters_below(config)
        if not below and _serves_beside(config["model"]["family"]):
            entry = {"name": name, "path": str(folder)}
            yield _with(base, ("serving", "adapters"), [entry]), entry
        together = [*below, str(folder)]
        other = _TRANSFORMERS if config["task"] != "image-generation" else None
        for family in dict.fromkeys((config["model"]["family"], other)):
            if family:
                keys = _head(config, _keys(config, family))
                yield _with(keys, ("model", "adapter"), together), None


def _serves_beside(family: str) -> bool:
    try:
        return MODEL_REGISTRY.find(family).takes_adapters
    except RegistryError:
        return False


def _keys(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Returns the keys of the model that was trained, as it was served before."""
    model, usual = config["model"], ServingSection().model_dump(by_alias=True)
    given = {
        key: value
        for key, value in config.get("serving", {}).items()
        if key not in _OF_ONE_MODEL and value != usual.get(key)
    }
    if family != model["family"]:
        given.pop("engine", None)  # another family has other settings
    kept = ("name_or_path", "revision", "import")
    keys: dict[str, Any] = {
        "task": config["task"],
        "model": {"family": family, **{key: model[key] for key in kept if model.get(key)}},
    }
    if (dtype := config["model_optim"].get("dtype", "auto")) != "auto":
        keys["model_optim"] = {"dtype": dtype}
    if serving := _without_hidden(given):
        keys["serving"] = serving
    return keys


def _whole(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    keys = _head(config, _keys(config, config["model"]["family"]))
    keys["model"] = {**keys["model"], "name_or_path": str(folder)}
    keys["model"].pop("revision", None)
    return keys


def _head(config: Mapping[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys for what the model ends with: classes and scores are a pipeline's."""
    if METHODS[config["training"]["method"]].head not in ("score", "classes"):
        return keys
    if keys["model"]["family"] != _TRANSFORMERS:
        keys = _keys(config, _TRANSFORMERS)
    return _with({**keys, "task": "custom"}, ("serving", "engine"), dict(CLASSIFIER))


def _with(keys: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Returns a copy of a nested mapping with one value set."""
    first, *rest = path
    inner = _with(keys.get(first) or {}, tuple(rest), value) if rest else value
    return {**keys, first: inner}


def _without_hidden(value: Any) -> Any:
    """Returns a nested value without secrets that were written as they are."""
    if isinstance(value, Mapping):
        found = {key: _without_hidden(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None and item != {}}
    return None if isinstance(value, str) and HIDDEN in value else value


def _yaml(value: Any) -> list[str]:
    text: str = yaml.safe_dump(value, sort_keys=False, width=10_000, allow_unicode=True)
    return text.splitlines()
