"""The command group: finds commands by their module, and turns errors into messages and exit codes.

The module `cli/<name>.py` with a click command called `<name>` is a subcommand. `--help` imports
them all, so each imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from truthgpt_serve.errors import TruthGPTError

EXIT_FAILED = 1
"""The service refused, failed or does not answer, or a program failed."""
EXIT_FAULT = 2
"""The command was used wrongly, or a file has faults."""
EXIT_INTERRUPTED = 130
"""Ctrl-C."""
_PACKAGE = "truthgpt_serve.cli"
_EPILOG = """\
Commands that talk to the service find it by TRUTHGPT_URL, else they take the one that `make serve`
runs here, else http://127.0.0.1:8000. They send TRUTHGPT_API_KEY, if it is set, as the API key.

Exit codes: 0 is success; 1, the service does not answer, refused or failed; 2, the command was used
wrongly or a file has faults. More: docs/cli.md.
"""


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that is called; an unknown one is a usage error with the nearest."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self.list_commands(ctx):
            from truthgpt_serve.wording import nearest  # only a mistake needs it

            near = nearest(name, self.list_commands(ctx))
            hint = f": did you mean {near}?" if near else ""
            ctx.fail(f"there is no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; an error of this package becomes its message and exit code 2."""
        try:
            return super().invoke(ctx)
        except TruthGPTError as error:
            click.echo(error.message, err=True)
            ctx.exit(EXIT_FAULT)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(package_name="truthgpt-serve", prog_name="truthgpt")
def main() -> None:
    """Serves, runs and trains models: TruthGPT Serve."""
