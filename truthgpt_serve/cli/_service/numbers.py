"""Numbers on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A number between bounds. `click.FloatRange` lets `nan` pass, which is in no order at all."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number. Raises click.BadParameter."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


class FiniteRange(NumberRange):
    """A finite number between bounds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number. Raises click.BadParameter."""
        number = super().convert(value, param, ctx)
        if math.isinf(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def max_shard_option(what: str) -> Callable[[F], F]:
    """Returns the option `--max-shard` of a command that writes weights.

    Args:
        what: What its files hold, for `--help`.
    """
    return click.option(
        "--max-shard",
        callback=_check_file_size,
        default="5GB",
        show_default=True,
        metavar="SIZE",
        help=f"Largest file of {what}.",
    )


def _check_file_size(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    """Returns a size above zero such as `5GB`, with the units that Hugging Face's libraries read.

    Raises click.BadParameter.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)[KMGT]B", value, re.IGNORECASE)
    if found is None or not 0 < float(found[1]) < math.inf:
        raise click.BadParameter(f"{value!r} is not a size such as 5GB or 500MB.")
    return value
