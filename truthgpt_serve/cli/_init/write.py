"""Writes the files of a new model: each at once or not at all, and none over another."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from truthgpt_serve.cli._init.model_file import NewModel, render
from truthgpt_serve.cli._init.serve_file import InsertError, add_model, entry_text
from truthgpt_serve.config.source import Source
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.validate import validate_file
from truthgpt_serve.validate.applications import check_model_name


class Plan:
    """What will be written.

    Args:
        folder: The configurations' folder.
        name: The model.
        serve: The Serve file, or None to leave it alone.

    Raises:
        ConfigError: The name cannot be used, or the Serve file cannot take it.
        click.UsageError: A file is there already, or a folder is missing.
    """

    def __init__(self, folder: Path, name: str, serve: Path | None) -> None:
        self._folder = folder
        self._name = name
        self._serve = serve
        self._config = f"models/{name}.yaml"
        self._path = folder / self._config
        _check_name(name)
        if not folder.is_dir():
            raise click.UsageError(
                f"there is no folder {folder}: run this where it is, or set TRUTHGPT_CONFIG_DIR"
            )
        if self._path.exists():
            raise click.UsageError(f"{self._path} exists already: choose another name")
        self._before = self._after = ""
        if serve is not None:
            self._before = _read(serve)
            try:
                self._after = add_model(self._before, name, self._config)
            except InsertError as error:
                own = "".join(entry_text(name, self._config))
                raise click.UsageError(
                    f"{serve}: {error}. With --no-serve only the model's file is written; then add "
                    f"to its applications:\n{own}"
                ) from error

    def carry_out(self, model: NewModel) -> list[str]:
        """Writes the files; returns what to tell the user.

        Raises:
            ConfigError: The result has faults: what was written has been taken back.
            click.ClickException: A file cannot be written.
        """
        schema = Path("..") / "schema.json" if (self._folder / "schema.json").is_file() else None
        known = set() if self._serve is None else _faults(self._serve)
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("x", encoding="utf-8") as file:
                file.write(render(model, schema))
            try:
                self._check(_faults(self._path))
                if self._serve is not None:
                    self._write_serve(self._serve, known)
            except BaseException:
                self._path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise click.ClickException(f"cannot write: {error}") from error
        return self._describe(model)

    def _write_serve(self, serve: Path, known: set[Fault]) -> None:
        if _read(serve) != self._before:
            raise click.ClickException(f"{serve} has just been changed: try again")
        replace(serve, self._after)
        try:
            self._check({fault for fault in _faults(serve) if not _is_known(fault, known)})
        except BaseException:
            if _read(serve) == self._after:
                replace(serve, self._before)
            else:
                click.echo(
                    f"note: {serve} was changed meanwhile, and stays as it is: if {self._name} is "
                    "in it, take that out",
                    err=True,
                )
            raise

    def _check(self, faults: set[Fault]) -> None:
        if faults:
            raise ConfigError(sorted(faults, key=str))

    def _describe(self, model: NewModel) -> list[str]:
        lines = [f"wrote {self._path}: {model.task} by {model.family}"]
        if model.why:
            lines[0] += f" ({model.why})"
        if self._serve is None:
            return [*lines, f"check it: truthgpt validate {self._path}"]
        return [
            *lines,
            f"added {model.name} to {self._serve}",
            f"check this machine: truthgpt doctor {self._path}",
            f"serve it: make serve, or where it runs already: truthgpt deploy {self._serve}",
        ]


def _check_name(name: str) -> None:
    application = {"name": name, "route_prefix": f"/models/{name}"}
    if faults := list(check_model_name(application, Source("the name"))):
        raise ConfigError(faults)


def _faults(path: Path) -> set[Fault]:
    return set(validate_file(str(path)).faults)


def _is_known(fault: Fault, known: set[Fault]) -> bool:
    """Returns whether a fault was there before: an entry more moves the lines of others."""
    return any(fault.message == other.message and fault.fix == other.fix for other in known)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:  # line breaks as they are
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{path} cannot be read: {error}; --no-serve leaves it alone") from (
            error
        )


def replace(path: Path, text: str) -> None:
    """Gives a file another text at once: whoever reads it gets the one or the other."""
    target = path.resolve()  # what a link leads to, not the link
    mode = target.stat().st_mode
    number, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    work = Path(name)
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        work.chmod(mode & 0o7777)
        work.replace(target)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
