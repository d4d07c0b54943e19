"""Has commands run with whatever standard streams they get: closed, full, without characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def open_closed_streams() -> None:
    """Stands an empty file in for standard input and error where a shell has closed them."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


@contextmanager
def writing_output() -> Iterator[None]:
    """Runs a block that prints.

    A character that standard output has no code for is written as Python escapes it. A closed
    output takes everything and shows nothing.

    Raises:
        click.ClickException: The output takes nothing, as on a full disk.
    """
    if sys.stdout is None:
        with open(os.devnull, "w", encoding="utf-8") as sys.stdout:
            yield
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _discard_output()
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from error


def _discard_output() -> None:
    """Leads standard output nowhere, so that the interpreter's own flush at the end succeeds."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
