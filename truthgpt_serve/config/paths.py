"""Finds configuration files, and the local weights that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from glob import iglob
from pathlib import Path

from truthgpt_serve.config.source import Source
from truthgpt_serve.errors import ConfigError, Fault

CONFIG_DIR_VARIABLE = "TRUTHGPT_CONFIG_DIR"
_EXPLICIT = ("./", "../", "/", "~")


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder of the configurations: `TRUTHGPT_CONFIG_DIR`, else `configs`."""
    return expand(environ.get(CONFIG_DIR_VARIABLE) or "configs")


def find_config(path: str | Path, place: str | None = None) -> Path:
    """Returns the file that `path` names, from the working directory or the configurations' folder.

    Raises:
        ConfigError: There is no such file, or it is a folder.
    """
    wanted = expand(path)
    folder = config_dir()
    tried = [wanted] if wanted.is_absolute() else [wanted, folder / wanted]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    looked = " and ".join(str(candidate.absolute()) for candidate in tried)
    message = f"no such file; looked for {looked}"
    if any(candidate.is_dir() for candidate in tried):
        message = f"is a folder, not a file; looked for {looked}"
    fix = "" if wanted.is_absolute() else f"set {CONFIG_DIR_VARIABLE} to the folder it is in"
    prefix = f"{place}: " if place else ""
    raise ConfigError([Fault(f"{prefix}{path}", message, fix)])


def expand(value: str | Path) -> Path:
    """Returns a path with its `~`; of a user who does not exist it stays as it is."""
    try:
        return Path(value).expanduser()
    except RuntimeError:
        return Path(value)


def resolve_local(value: str, source: Source) -> str:
    """Returns an absolute path if `value` names a local file or folder, else `value` itself.

    A relative path is looked up in the working directory, then beside the YAML file, then in the
    parent of the configurations' folder. A pattern is one where it matches something.
    """
    path = expand(value)
    if path.is_absolute():
        return str(path) if _exists(path) else value
    beside = [source.directory] if source.directory is not None else []
    for folder in (Path.cwd(), *beside, config_dir().absolute().parent):
        candidate = Path(os.path.normpath(folder.absolute() / path))
        if _exists(candidate) or (is_pattern(value) and any(iglob(str(candidate), recursive=True))):
            return str(candidate)
    return value


def is_pattern(value: str) -> bool:
    """Returns whether a path has `*`, `?` or `[...]` in it, which stand for parts of names."""
    return any(mark in value for mark in "*?[")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or not to be looked at
        return False


def must_be_local(value: str) -> bool:
    """Returns whether `value` can only mean a path, so not a hub name."""
    return value.startswith(_EXPLICIT) or value.endswith("/") or value in (".", "..")
