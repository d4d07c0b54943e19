"""Commands end without a traceback, whatever the standard streams are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 120
SCHEMA = [sys.executable, "-m", "truthgpt_serve.cli", "schema"]
SAY = """
import click
from truthgpt_serve.cli._service.output import writing_output

@click.command()
def say():
    with writing_output():
        print("Ada \\u2192 \\u00e9", flush=True)

say()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            SCHEMA, stdout=full, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False
        )
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the output cannot be written: No space left on device\n",
    )


def test_a_closed_output_shows_nothing() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *SCHEMA],
        stderr=subprocess.PIPE,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("closed", "command", "said"),
    [
        ("<&-", ["chat", "echo"], "there is nothing to ask"),
        ("<&-", ["infer", "x.yaml", "--inputs", "-"], "is not JSON"),
        ("<&-", ["init", "own"], "give --from"),
        ("2>&-", ["chat", "echo", "--prompt", ""], ""),
    ],
)
def test_closed_streams_are_empty(
    tmp_path: Path, closed: str, command: list[str], said: str
) -> None:
    (tmp_path / "x.yaml").write_text("model: {family: echo}\n")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *SCHEMA[:-1], *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_characters_that_the_output_lacks_are_escaped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAY],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"Ada \\u2192 \xe9\n"
