"""The part of a page that shows what models made of some prompts, from step to step."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from truthgpt_serve.training.generation.record import KeptSample

_Row = tuple[str, int]
"""A prompt, and which of the same ones."""
MAX_STEPS = 6
"""Evaluations of one run that are shown: the first one, and the newest."""
MAX_IMAGE_BYTES = 12 << 20
"""Of all images of a page; the newest come first."""


def draw_samples(runs: Mapping[str, Sequence[KeptSample]]) -> str:
    """Returns a table of each run, a row a prompt and a column a step; nothing without samples.

    Args:
        runs: The samples of each run by its name.
    """
    budget = _Budget()
    parts = [_table(name, samples, budget) for name, samples in runs.items() if samples]
    return "".join(["<h2>Samples</h2>", *parts]) if parts else ""


class _Budget:
    """Hands out the bytes of a page's images."""

    def __init__(self) -> None:
        self._left = MAX_IMAGE_BYTES

    def image(self, sample: KeptSample) -> str:
        """Returns the image as an element."""
        if sample.image is None:
            return ""
        try:
            size = sample.image.stat().st_size
            if size > self._left:
                return '<span class="fault">not shown: the page is large already</span>'
            self._left -= size
            data = base64.b64encode(sample.image.read_bytes()).decode()
        except OSError:
            return '<span class="fault">the file is gone</span>'
        return f'<img alt="{escape(sample.prompt)}" src="data:image/png;base64,{data}">'


def _table(name: str, samples: Sequence[KeptSample], budget: _Budget) -> str:
    steps = sorted({sample.step for sample in samples})
    steps = steps if len(steps) <= MAX_STEPS else [steps[0], *steps[-(MAX_STEPS - 1) :]]
    found = _by_row([sample for sample in samples if sample.step in steps])
    prompts = list(dict.fromkeys(row for row, _ in found))
    cells: dict[tuple[_Row, int], str] = {}
    for step in reversed(steps):
        for prompt in prompts:
            if (sample := found.get((prompt, step))) is not None:
                cells[prompt, step] = "".join(_cell(sample, budget))
    head = "".join(f'<th scope="col">step {step:,}</th>' for step in steps)
    rows = [
        f'<tr><th scope="row"><pre>{escape(prompt[0])}</pre></th>'
        + "".join(f"<td>{cells.get((prompt, step), '')}</td>" for step in steps)
        + "</tr>"
        for prompt in prompts
    ]
    caption = f"<caption>{escape(name)}</caption>"
    head = f'<tr><th scope="col">prompt</th>{head}</tr>'
    return f'<div class="wide"><table>{caption}{head}{"".join(rows)}</table></div>'


def _by_row(samples: Sequence[KeptSample]) -> dict[tuple[_Row, int], KeptSample]:
    """Returns the samples by their row and step: a prompt that is given twice has two rows."""
    found: dict[tuple[_Row, int], KeptSample] = {}
    numbers: Counter[tuple[str, int]] = Counter()
    for sample in samples:
        number = numbers[sample.prompt, sample.step]
        numbers[sample.prompt, sample.step] += 1
        found[(sample.prompt, number), sample.step] = sample
    return found


def _cell(sample: KeptSample, budget: _Budget) -> Iterator[str]:
    yield budget.image(sample)
    if sample.text is not None:
        yield f"<pre>{escape(sample.text)}</pre>"
    if sample.fault:
        yield f'<span class="fault">{escape(sample.fault)}</span>'
