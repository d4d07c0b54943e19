"""The command group: finds commands by their module, and turns errors into messages and exit codes.

Knows no command by name: the module `cli/<name>.py` with a click command called `<name>` is one.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from truthgpt_serve.errors import TruthGPTError

EXIT_FAULT = 2
_PACKAGE = "truthgpt_serve.cli"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, so that each starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, from the modules of this package."""
        path = importlib.import_module(_PACKAGE).__path__
        names = [module.name for module in pkgutil.iter_modules(path)]
        return sorted(name for name in names if name != "main" and not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns one command, or None if there is no such module."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(f"{_PACKAGE}.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; an error of this package becomes its message and exit code 2."""
        try:
            return super().invoke(ctx)
        except TruthGPTError as error:
            click.echo(error.message, err=True)
            ctx.exit(EXIT_FAULT)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serves, runs and trains models: TruthGPT Serve."""
