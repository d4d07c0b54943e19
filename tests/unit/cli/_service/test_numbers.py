"""A number on the command line is one."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from truthgpt_serve.cli._service.numbers import FiniteRange, NumberRange


@click.command()
@click.option("--number", type=FiniteRange(min=0))
def show(number: float) -> None:
    click.echo(number)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
def test_what_is_none_is_refused_with_the_option(value: str) -> None:
    found = CliRunner().invoke(show, ["--number", value])
    assert found.exit_code == 2
    assert "Invalid value for '--number'" in found.output


def test_one_is_read() -> None:
    assert CliRunner().invoke(show, ["--number", "1.5"]).output == "1.5\n"


def test_a_range_may_have_no_end() -> None:
    number = click.Option(["--number"], type=NumberRange(min=0))
    command = click.Command("show", params=[number], callback=lambda number: click.echo(number))
    assert CliRunner().invoke(command, ["--number", "inf"]).output == "inf\n"
    found = CliRunner().invoke(command, ["--number", "nan"])
    assert (found.exit_code, "nan is not a number" in found.output) == (2, True)
