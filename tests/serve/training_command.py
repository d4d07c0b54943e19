"""Runs `truthgpt train` in tests, with a Ray of its own or a cluster's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import losses, sections_of, sentences, write_rows
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run

TRUTHGPT = str(Path(sys.executable).parent / "truthgpt")
TIMEOUT_S = 240
NUM_ROWS = 48


def make_folder(folder: Path) -> Path:
    """Writes a model and texts to train it on into a folder, which it returns."""
    make_tiny_llama(folder / "llama")
    write_rows(folder / "texts.jsonl", [{"text": text} for text in sentences(NUM_ROWS)])
    return folder


def write_config(folder: Path, name: str, **given: dict[str, Any]) -> Path:
    sections = sections_of(folder / "llama", folder / "texts.jsonl", **given)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**sections, "run_name": name}), encoding="utf-8")
    return file


@contextmanager
def command(
    folder: Path, *arguments: str, ray: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Runs `truthgpt train`, and leaves no process of it behind.

    Args:
        folder: Where it runs.
        arguments: Its arguments.
        ray: The variables that lead to a cluster; without them the command starts a Ray of its own.
    """
    run_id = create_run_id()
    process = subprocess.Popen(
        [TRUTHGPT, "train", *arguments],
        cwd=folder,
        env={**os.environ, **(ray or {}), **create_run_environment(run_id)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a signal can go to the whole group, as a terminal's does
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)
        end_run(run_id)
        if process.stdout is not None:
            process.stdout.close()


def run_command(folder: Path, *arguments: str, ray: Mapping[str, str] | None = None) -> str:
    with command(folder, *arguments, ray=ray) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    return output


def wait_until_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while len(losses(run)) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"step {step} was not reached:\n{process.communicate()[0]}")
        time.sleep(0.02)
