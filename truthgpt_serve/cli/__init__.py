"""The `truthgpt` command.

Each subcommand is a module of this package, imported when it is called.
"""

from __future__ import annotations

from truthgpt_serve.cli.main import main

__all__ = ["main"]
