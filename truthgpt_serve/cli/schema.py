"""`truthgpt schema`: prints the JSON Schema or the reference of the configuration.

`truthgpt_serve.validate.reference` reads the keys from the models.
"""

from __future__ import annotations

import json

import click

KINDS = ("model", "router", "serve")
"""The keys of `truthgpt_serve.validate.reference.SCHEMAS`, which `--help` need not import."""


@click.command()
@click.argument("what", type=click.Choice(KINDS), default="model")
@click.option(
    "--markdown", "as_markdown", is_flag=True, help="Print docs/configuration.md instead."
)
def schema(what: str, as_markdown: bool) -> None:
    """Prints the JSON Schema of a model's file, of the router's arguments or of a Serve file."""
    from truthgpt_serve.validate.reference import SCHEMAS, markdown

    if as_markdown:
        click.echo(markdown(), nl=False)
    else:
        click.echo(json.dumps(SCHEMAS[what](), indent=2, ensure_ascii=False))
