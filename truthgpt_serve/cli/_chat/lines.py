"""The terminal of a conversation: reads what the user types, shows what the model says."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import click

from truthgpt_serve.terminal import clean

PROMPT = "> "
CONTINUED = "... "
QUOTES = '"""'


def read_text(say: Callable[[str], None]) -> str | None:
    """Returns what the user types next, several lines in triple quotes; None at the end (Ctrl-D).

    Ctrl-C gives up what is being typed.
    """
    with contextlib.suppress(ImportError):  # not in every Python: then without editing
        import readline  # noqa: F401  `input` uses it: arrows, history
    try:
        line = input(PROMPT)
        if not line.startswith(QUOTES):
            return line
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].endswith(QUOTES) or (len(lines) == 1 and not lines[0]):
            lines.append(input(CONTINUED))
        return "\n".join(lines).removesuffix(QUOTES).strip("\n")
    except EOFError:
        say("")
        return None
    except KeyboardInterrupt:
        say("\nleave with Ctrl-D or /exit")
        return ""
    except UnicodeDecodeError:
        say("this is not text in UTF-8")
        return ""


class Printer:
    """Shows one answer piece by piece; on a terminal what the model thinks too, but paler."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._open = False

    def show(self, text: str, reasoning: str) -> None:
        """Shows a piece at once."""
        if reasoning and self._on_terminal:
            self._write(click.style(clean(reasoning), dim=True))
        if text:
            self._write(clean(text) if self._on_terminal else text)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._open = not text.endswith("\n")

    def end(self) -> None:
        """Ends the last line."""
        if self._open:
            self._write("\n")
