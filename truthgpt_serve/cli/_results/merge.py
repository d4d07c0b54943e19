"""`truthgpt merge`: writes base and adapter as one model.

`truthgpt_serve.takeaway` converts.
"""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_serve.cli._service.numbers import max_shard_option

DTYPES = ("float32", "float16", "bfloat16")
"""`truthgpt_serve.takeaway.whole.DTYPES`, which `--help` need not import."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The new folder; by default `merged` in the run's folder, or beside the adapter's.",
)
@click.option("--base", help="The model that the adapter is for, in place of the one it names.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Number format; by default the base's.")
@max_shard_option("weights")
@click.option("--force", is_flag=True, help="Replace a folder that exists.")
def merge(
    run: Path,
    out: Path | None,
    base: str | None,
    dtype: str | None,
    max_shard: str,
    force: bool,
) -> None:
    """Merges the adapter of RUN into its model, and writes the whole model.

    RUN is a run's folder, or the folder of any adapter of peft or Diffusers. Text and image models.
    """
    from truthgpt_serve.takeaway.merge import merge as convert

    folder, lines = convert(run, out=out, base=base, dtype=dtype, max_shard=max_shard, force=force)
    for line in (f"merged into {folder}", *lines):
        click.echo(line)
