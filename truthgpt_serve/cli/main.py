"""The command group: finds commands by their module, and turns errors into messages and exit codes.

The module `cli/<name>.py` with a click command called `<name>` is a subcommand, and so is one of
`cli/_results/`, for what a training run has made; a `_` in a name is typed as `-`. `--help` imports
them all, so each imports what it needs when it runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import click

from truthgpt_serve.cli._service.ending import ending_in_order
from truthgpt_serve.cli._service.output import open_closed_streams, writing_output
from truthgpt_serve.errors import TruthGPTError

EXIT_FAILED = 1
"""The service refused, failed or does not answer, or a program failed."""
EXIT_FAULT = 2
"""The command was used wrongly, or a file has faults."""
EXIT_INTERRUPTED = 130
"""Ctrl-C."""
_PACKAGES = ("truthgpt_serve.cli", "truthgpt_serve.cli._results")
_EPILOG = """\
Commands that talk to the service find it by TRUTHGPT_URL, else they take the one that `make serve`
runs here, else http://127.0.0.1:8000. They send TRUTHGPT_API_KEY, if it is set, as the API key.

Exit codes: 0 is success; 1, the service does not answer, refused or failed; 2, the command was used
wrongly or a file has faults. More: docs/cli.md.
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used, so that each starts quickly."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, from the modules of the packages."""
        return sorted(_find_modules())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns one command, or None if there is no such module."""
        module = _find_modules().get(cmd_name)
        if module is None:
            return None
        command = getattr(importlib.import_module(module), cmd_name.replace("-", "_"))
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
        open_closed_streams()
        try:
            with ending_in_order(), writing_output():
                return super().invoke(ctx)
        except TruthGPTError as error:
            click.echo(error.message, err=True)
            ctx.exit(EXIT_FAULT)
        except (KeyboardInterrupt, click.Abort) as error:
            if isinstance(error.__context__, EOFError):  # Ctrl-D where something is asked
                raise
            click.echo("stopped", err=True)
            ctx.exit(EXIT_INTERRUPTED)


def _find_modules() -> dict[str, str]:
    """Returns the module of each command by its name."""
    found = {}
    for package in _PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name != "main" and not module.name.startswith("_"):
                found[module.name.replace("_", "-")] = f"{package}.{module.name}"
    return found


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(package_name="truthgpt-serve", prog_name="truthgpt")
def main() -> None:
    """Serves, runs and trains models: TruthGPT Serve."""
