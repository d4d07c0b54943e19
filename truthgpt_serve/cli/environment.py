"""`truthgpt environment`: the variables with which Ray is started by hand, for `eval`.

Starts nothing.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from truthgpt_serve.errors import TruthGPTError


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The token of a cluster that this node shall join; by default one is made.",
)
@click.option("--cluster", is_flag=True, help="For a cluster of several nodes.")
def environment(folder: Path, token_file: Path | None, cluster: bool) -> None:
    """Prints the variables with which Ray is started by hand: eval "$(truthgpt environment .run)".

    Those of configs/ray.env, of the token in FOLDER, and of a private folder for Ray's files, which
    FOLDER leads to. Without --cluster Ray's ports are on the loopback address only. What the shell
    has set already stays as it is.
    """
    from truthgpt_serve.cluster.environment_file import read_environment_file
    from truthgpt_serve.cluster.haproxy.program import BINARY_VARIABLE, program_path
    from truthgpt_serve.cluster.private_files import (
        LOOPBACK_ONLY,
        TOKEN_FILE,
        find_private_folder,
        private_environment,
        write_token,
    )

    settings = _find_settings()
    token = "" if token_file is None else _read_token(token_file)
    try:
        private = find_private_folder(folder)
        if token or not (folder / TOKEN_FILE).exists():
            write_token(folder, token)
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be used: {error.strerror or error}") from error
    values = {
        **read_environment_file(settings),
        **private_environment(private, folder / TOKEN_FILE),
        BINARY_VARIABLE: str(program_path()),
        **({} if cluster or token_file is not None else LOOPBACK_ONLY),
    }
    for name, value in sorted(values.items()):
        if name not in os.environ:
            click.echo(f"export {name}={shlex.quote(value)}")


def _read_token(path: Path) -> str:
    """Returns the token of a file. Raises click.BadParameter."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(
            f"{path} cannot be read: {error}", param_hint="--token-file"
        ) from error
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise click.BadParameter(f"{path} holds no token of one line", param_hint="--token-file")
    return token


def _find_settings() -> Path:
    """Returns the `ray.env` of the configurations' folder, else that of this checkout."""
    from truthgpt_serve.cli._service.address import root
    from truthgpt_serve.config.paths import config_dir

    tried = [folder / "ray.env" for folder in (config_dir(), root() / "configs")]
    for settings in tried:
        if settings.is_file():
            return settings
    looked = " and ".join(str(settings.absolute()) for settings in tried)
    raise TruthGPTError(f"there is no ray.env; looked for {looked} (copy the repository's there)")
