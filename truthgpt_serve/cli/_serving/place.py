"""Puts a result into the Serve file, or beside the model that it is an adapter of."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from truthgpt_serve.cli._init.serve_file import InsertError, add_application
from truthgpt_serve.cli._init.write import replace
from truthgpt_serve.cli._serving.adapter_entry import Key, add_adapter
from truthgpt_serve.config import load_model_args
from truthgpt_serve.config.load import config_path
from truthgpt_serve.config.paths import find_config
from truthgpt_serve.config.source import Source
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.training.serving import Served
from truthgpt_serve.validate import validate_file
from truthgpt_serve.validate.applications import MODEL_IMPORT, check_model_name, import_target


@dataclass(frozen=True, slots=True)
class Placed:
    """What was written.

    Attributes:
        file: The file that has the entry now.
        application: The application that serves the result.
        line: What was done, for the user.
    """

    file: Path
    application: str
    line: str


def check_place(serve: Path, name: str) -> None:
    """Checks, before anything is trained, that a Serve file can take a model of this name.

    Raises:
        ConfigError: The name cannot be used.
        click.ClickException: It is taken, or the file cannot be read or written.
    """
    application = {"name": name, "route_prefix": f"/models/{name}"}
    if faults := list(check_model_name(application, Source("--serve"))):
        raise ConfigError(faults)
    text = _read(serve)
    target = serve.resolve()
    if not os.access(target, os.W_OK) or not os.access(target.parent, os.W_OK):
        raise click.ClickException(f"{serve} cannot be written: name another with --serve-file")
    try:
        add_application(text, {"name": name})
    except InsertError as error:
        raise click.ClickException(f"{serve}: {error}") from error
    for _, config_name, taken in _names(yaml.safe_load(text)):
        if name in taken:
            message = f"{serve}: {config_name!r} has an adapter or alias {name!r} already"
            raise click.ClickException(f"{message}: choose another name")


def place(serve: Path, served: Served) -> Placed:
    """Adds a result to a Serve file, or to the file of the model that it is an adapter of.

    Raises:
        ConfigError: The files would have faults: they are as they were.
        click.ClickException: A file cannot be read or written, or has changed meanwhile.
    """
    with _locked(serve):
        text = _read(serve)
        if _has_it(text, served):
            return Placed(serve, served.application_name, f"{serve} has {served.name} already")
        check_place(serve, served.name)
        beside = _find_base(text, served)
        try:
            if beside is None:
                after = add_application(text, served.application)
                line = f"added {served.name} to {serve}"
                return _write(serve, serve, text, after, served.application_name, line)
            application, file, path = beside
            file = file or serve
            before = _read(file)
            after = add_adapter(before, path, served.adapter or {})
        except InsertError as error:
            lines = "\n".join(served.adapter_lines() if beside else served.lines())
            where = serve if beside is None else file
            raise click.ClickException(f"{where}: {error}. By hand:\n{lines}") from error
        line = f"added {served.name} to {file}, as an adapter of {application}"
        return _write(serve, file, before, after, application, line)


def _has_it(text: str, served: Served) -> bool:
    """Returns whether an earlier try has added a result as an application of its own."""
    try:
        applications = yaml.safe_load(text)["applications"]
        return any(each == served.application for each in applications)
    except (yaml.YAMLError, ValueError, TypeError, KeyError):
        return False


def _write(serve: Path, file: Path, before: str, after: str, application: str, line: str) -> Placed:
    """Writes a file, and takes it back if the Serve file then has faults that it had not."""
    known = validate_file(str(serve)).faults
    try:
        if _read(file) != before:
            raise click.ClickException(f"{file} has just been changed: try again")
        replace(file, after)
        faults = _new_faults(known, validate_file(str(serve)).faults)
        if faults and _read(file) == after:
            replace(file, before)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be written: {error}") from error
    if faults:
        raise ConfigError(sorted(set[Fault](faults), key=str))
    return Placed(file, application, line)


def _new_faults(known: Sequence[Fault], found: Sequence[Fault]) -> list[Fault]:
    """Returns the faults of which there are more than before, those at new places alone if it can.

    A place counts applications, and what is added moves those behind it.
    """
    before = Counter((fault.message, fault.fix) for fault in known)
    after = Counter((fault.message, fault.fix) for fault in found)
    more = {what for what, number in after.items() if number > before[what]}
    new = [fault for fault in found if (fault.message, fault.fix) in more]
    return [fault for fault in new if fault not in known] or new


def _find_base(text: str, served: Served) -> tuple[str, Path | None, tuple[Key, ...]] | None:
    """Returns the application that serves an adapter's base already.

    Returns:
        Its name, its model's file or None, and where the model's keys are in the file.
    """
    if served.adapter is None:
        return None
    try:
        wanted = load_model_args(served.args, place="args")
    except ConfigError:
        return None
    for index, application in enumerate(yaml.safe_load(text)["applications"]):
        config = _model_of(application)
        if config is None or config.model.adapter or config.family != wanted.family:
            continue
        if (config.task, config.model.name_or_path) == (wanted.task, wanted.model.name_or_path):
            args = application["args"]
            if "config" in args:
                named = config_path(args["config"], Source(application["name"]))
                return application["name"], find_config(named), ()
            return application["name"], None, ("applications", index, "args")
    return None


def _model_of(application: Mapping[str, Any]) -> Any:
    if import_target(application.get("import_path")) != MODEL_IMPORT:
        return None
    try:
        return load_model_args(application.get("args") or {}, place="args")
    except (ConfigError, TypeError, AttributeError):
        return None


def _names(data: Mapping[str, Any]) -> Iterator[tuple[Any, str, set[str]]]:
    """Yields each model with the further names that clients may send for it."""
    for application in data["applications"]:
        if config := _model_of(application):
            serving = config.serving
            more = {*serving.aliases, *(adapter.name for adapter in serving.adapters)}
            yield config, str(application.get("name")), more


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line breaks as they are
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from error


@contextmanager
def _locked(serve: Path) -> Iterator[None]:
    """Keeps other commands of this program from changing the files of the folder meanwhile."""
    try:
        folder = os.open(serve.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise click.ClickException(f"{serve} cannot be read: {error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
