"""Refuses what a user gave that is not text in UTF-8, and names where it stops being one."""

from __future__ import annotations

import click

_SHOWN = 20
_ESCAPED = range(0xDC80, 0xDD00)
"""What stands for a byte that is not UTF-8, in arguments and in standard input."""


def check_text(text: str, what: str) -> None:
    """Raises click.UsageError for a text that cannot be sent as UTF-8.

    Args:
        text: The text.
        what: Where it comes from, for the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise no_text(what, error) from error


def no_text(what: str, error: UnicodeEncodeError) -> click.UsageError:
    """Returns the error of a text that cannot be encoded."""
    text, start = error.object, error.start
    if _is_misread(text):
        return click.UsageError(
            f"{what} has letters that this shell's locale has no codes for: set LC_ALL=C.UTF-8"
        )
    code = ord(text[start])
    wrong = f"the byte {code - 0xDC00:#04x}" if code in _ESCAPED else "half of a surrogate pair"
    before = text[max(0, start - _SHOWN) : start]
    where = f"behind {before!r}" if before else "at its beginning"
    return click.UsageError(f"{what} is not text in UTF-8: {wrong} {where}")


def _is_misread(text: str) -> bool:
    """Returns whether a text is UTF-8 that Python read in a smaller set, such as ASCII."""
    try:
        text.encode("utf-8", "surrogateescape").decode()
    except UnicodeError:
        return False
    return True
