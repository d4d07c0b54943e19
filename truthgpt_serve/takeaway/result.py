"""Finds what a path names: a run's result, an adapter, or a whole model; loads no weights."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgpt_serve.config.paths import expand, must_be_local
from truthgpt_serve.config.variables import VariableError
from truthgpt_serve.config.variables import expand as expand_variables
from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.model_files import ModelFileError, read_object
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.training.memory.lora import adapters_below
from truthgpt_serve.training.run_folder import MODEL, RECORD, SHARDS
from truthgpt_serve.training.run_record import read_record

TEXT_ADAPTER = "adapter_config.json"
IMAGE_ADAPTER = "pytorch_lora_weights.safetensors"
PIPELINE = "model_index.json"
TEXT_MODEL = "config.json"
LEARNED_WORDS = ("learned_embeds.safetensors", "learned_embeds_2.safetensors")


@dataclass(frozen=True, slots=True)
class Result:
    """What a path names.

    Attributes:
        folder: The folder of the adapter or model.
        is_image: Whether it belongs to a Diffusers pipeline, else to a text model.
        is_adapter: Whether it needs a base.
        base: The model that an adapter is for: a folder or a hub name; None for a whole model.
        revision: The base's, or None.
        run: The run's folder, or None for what no run of this project has made.
        record: The run's `run.json`; empty without one.
    """

    folder: Path
    is_image: bool
    is_adapter: bool
    base: str | None
    revision: str | None
    run: Path | None
    record: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the run; empty without one."""
        found = self.record.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def name(self) -> str:
        """The run's name, else the folder's."""
        return str(self.config.get("run_name") or self.folder.name)

    def beside(self, what: str) -> Path:
        """Returns where `what` is written by default: in the run's folder, else beside the result.

        Args:
            what: Such as `merged`.
        """
        if self.run is not None:
            return self.run / what
        return self.folder.with_name(f"{self.folder.name}-{what}")


def find_result(given: Path, base: str | None = None) -> Result:
    """Returns what a path names.

    Args:
        given: A run's folder, its `model/`, or the folder of an adapter or model.
        base: The model that an adapter is for, in place of the one that it names itself.

    Raises:
        TakeawayError: There is no result, or an adapter names no base.
    """
    folder = expand(given).absolute()
    if not folder.is_dir():
        fix = "name a run's folder, or that of an adapter"
        raise TakeawayError(f"{given}: is no folder ({fix})")
    run = next((place for place in (folder, folder.parent) if (place / RECORD).is_file()), None)
    if run == folder:
        folder = run / MODEL
        if not folder.is_dir():
            fix = "finish it with `truthgpt train --resume`, or name a checkpoint of it"
            raise TakeawayError(f"{given}: this run has no result yet ({fix})")
    record = _read_record(run)
    is_image = (folder / IMAGE_ADAPTER).is_file() or (folder / PIPELINE).is_file()
    is_adapter = (folder / TEXT_ADAPTER).is_file() or (folder / IMAGE_ADAPTER).is_file()
    _refuse_beside(given, folder)
    if not is_adapter and not is_image and not (folder / TEXT_MODEL).is_file():
        if (folder / SHARDS).is_dir():
            fix = "finish the run with `truthgpt train --resume`"
            raise TakeawayError(f"{given}: its weights are in shards, of training.fsdp ({fix})")
        wanted = ", ".join((TEXT_ADAPTER, IMAGE_ADAPTER, PIPELINE, TEXT_MODEL))
        fix = "name a run's folder, or that of an adapter or model"
        raise TakeawayError(f"{given}: has none of {wanted} ({fix})")
    if not is_adapter:
        return Result(folder, is_image, False, None, None, run, record)
    if base is None and record and adapters_below(record["config"]):
        fix = "merge those first, and name the result with --base"
        raise TakeawayError(f"{given}: its adapter stands on others of model.adapter ({fix})")
    own, revision = _base_of(folder, record)
    found = base or own
    if found is None:
        raise TakeawayError(f"{given}: the adapter names no model (name it with --base)")
    _check_base(found, given)
    kept = revision if base is None else None
    return Result(folder, is_image, True, _local(found), kept, run, record)


def _refuse_beside(given: Path, folder: Path) -> None:
    """Raises `TakeawayError` for what is loaded beside a pipeline: a learned word, a ControlNet."""
    what = "a learned word" if any((folder / name).is_file() for name in LEARNED_WORDS) else ""
    config = folder / TEXT_MODEL
    with suppress(ModelFileError):
        if config.is_file() and read_object(config).get("_class_name") == "ControlNetModel":
            what = "a ControlNet"
    if what:
        fix = "serve it with its base: truthgpt serve-line"
        raise TakeawayError(f"{given}: is {what}, which is neither merged nor exported ({fix})")


def _read_record(run: Path | None) -> dict[str, Any]:
    if run is None:
        return {}
    try:
        return read_record(run) or {}
    except TruthGPTError as error:
        raise TakeawayError(error.message) from error


def _base_of(folder: Path, record: dict[str, Any]) -> tuple[str | None, str | None]:
    """Returns base and revision: of the run, which has both for sure, else as peft wrote them."""
    model = record.get("config", {}).get("model", {})
    file = folder / TEXT_ADAPTER
    if model.get("name_or_path"):
        try:
            return expand_variables(model["name_or_path"]), model.get("revision")
        except VariableError as error:
            if not file.is_file():
                fix = f"{error.fix}, or name the model with --base"
                raise TakeawayError(f"{folder}: {error.message} ({fix})") from error
    if not file.is_file():
        return None, None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return settings.get("base_model_name_or_path") or None, settings.get("revision")
    except (OSError, ValueError, AttributeError) as error:
        raise TakeawayError(f"{file}: cannot be read: {error}") from error


def _check_base(base: str, given: Path) -> None:
    if must_be_local(base) and not expand(base).exists():
        fix = "name its place with --base"
        raise TakeawayError(f"{given}: the model of this adapter, {base}, is not there ({fix})")


def _local(base: str) -> str:
    """Returns an absolute path for a folder that is there, else the hub name as it is."""
    path = expand(base)
    return str(path.absolute()) if path.exists() else base
