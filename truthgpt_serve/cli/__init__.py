"""The `truthgpt` command.

Knows no command: each is a module of this package, found when it is asked for.
"""

from __future__ import annotations

from truthgpt_serve.cli.main import main

__all__ = ["main"]
