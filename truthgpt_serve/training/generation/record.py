"""The samples of a run on its disk: `samples/step-<n>/`, with a list of them and their images."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgpt_serve.training.run_folder import read_json, replace_folder, write_json

FOLDER = "samples"
LIST = "samples.json"
MAX_KEPT = 24
"""Evaluations whose samples are kept: the first one, and the newest."""
MAX_CHARS = 8_000
"""Characters of one text."""
MAX_EDGE = 512
"""Pixels along an image's longer edge; a larger one is made smaller."""
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was made of one prompt.

    Attributes:
        prompt: As it is shown.
        text: The answer of a text model, or None.
        image: The image of an image model, of PIL, or None.
        fault: Why it is missing or cut, or an empty text.
    """

    prompt: str
    text: str | None = None
    image: Any | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class KeptSample:
    """A sample as it is read again.

    Attributes:
        step: After which it was made.
        prompt: What it was made of.
        text: The answer, or None.
        image: The PNG file, or None.
        fault: Why it is missing or cut, or an empty text.
    """

    step: int
    prompt: str
    text: str | None
    image: Path | None
    fault: str


def write_samples(run: Path, step: int, samples: Sequence[Sample]) -> None:
    """Writes the samples of a step, whole or not at all, and removes older ones.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    unfinished = run / FOLDER / f".step-{step}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        rows = [_write(unfinished, index, one) for index, one in enumerate(samples)]
        write_json(unfinished / LIST, rows)
        replace_folder(unfinished, run / FOLDER / f"step-{step}")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    steps = _steps(run)
    for old in steps[1 : -(MAX_KEPT - 1)]:
        shutil.rmtree(run / FOLDER / f"step-{old}", ignore_errors=True)


def _write(folder: Path, index: int, sample: Sample) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": sample.prompt[:MAX_CHARS]}
    if sample.text is not None:
        row["text"] = sample.text[:MAX_CHARS]
    if sample.image is not None:
        sample.image.thumbnail((MAX_EDGE, MAX_EDGE))
        row["image"] = f"{index:02d}.png"
        sample.image.save(folder / row["image"], "PNG")
    if sample.fault:
        row["fault"] = sample.fault[:MAX_CHARS]
    # Half a surrogate pair, which a byte-level tokenizer may give, cannot be written.
    return {name: value.encode("utf-8", "replace").decode() for name, value in row.items()}


def _steps(run: Path) -> list[int]:
    if not (run / FOLDER).is_dir():
        return []
    found = [_STEP.fullmatch(path.name) for path in (run / FOLDER).iterdir()]
    return sorted(int(match[1]) for match in found if match)


def read_samples(run: Path) -> list[KeptSample]:
    """Returns the samples of a run, oldest first; what cannot be read is left out.

    Raises:
        TrainingError: A list is damaged.
    """
    found = []
    for step in _steps(run):
        folder = run / FOLDER / f"step-{step}"
        rows = read_json(folder / LIST)
        for row in rows if isinstance(rows, list) else ():
            if not isinstance(row, dict) or not all(
                isinstance(x, str | None) for x in row.values()
            ):
                continue
            image = row.get("image")
            file = folder / Path(image).name if image else None
            given = row.get("prompt") or "", row.get("text"), file, row.get("fault") or ""
            found.append(KeptSample(step, *given))
    return found


def forget_samples_after(run: Path, step: int) -> None:
    """Removes the samples of steps after `step`, which a resumed run will do again."""
    for other in _steps(run):
        if other > step:
            shutil.rmtree(run / FOLDER / f"step-{other}", ignore_errors=True)
