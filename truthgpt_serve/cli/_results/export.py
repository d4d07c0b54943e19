"""`truthgpt export`: writes a result in another format.

`truthgpt_serve.takeaway` converts.
"""

from __future__ import annotations

from pathlib import Path

import click

from truthgpt_serve.cli._results.merge import DTYPES
from truthgpt_serve.cli._service.numbers import max_shard_option

FORMATS = ("safetensors", "onnx", "gguf")
"""`truthgpt_serve.takeaway.export.FORMATS`, which `--help` need not import."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(FORMATS), help="The format.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The new folder; by default the format's name in the run's folder, or beside.",
)
@click.option("--base", help="The model that an adapter is for, in place of the one it names.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    help="Number format; by default the base's, for onnx float32.",
)
@max_shard_option("safetensors")
@click.option("--force", is_flag=True, help="Replace a folder that exists.")
def export(
    run: Path,
    to: str,
    out: Path | None,
    base: str | None,
    dtype: str | None,
    max_shard: str,
    force: bool,
) -> None:
    """Writes the result of RUN in another format; an adapter is merged on the way.

    RUN is a run's folder, or the folder of any adapter or model. Image pipelines become safetensors
    only. `onnx` is served by `family: onnxruntime`, `gguf` read by llama.cpp.
    """
    from truthgpt_serve.takeaway.export import export as convert

    folder, lines = convert(
        run, to, out=out, base=base, dtype=dtype, max_shard=max_shard, force=force
    )
    for line in (f"exported to {folder}", *lines):
        click.echo(line)
