"""One HTML page on a run, or on several side by side: no scripts, no outside addresses."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.generation.record import KeptSample, read_samples
from truthgpt_serve.training.report.curves import Line, draw
from truthgpt_serve.training.report.samples import draw_samples
from truthgpt_serve.training.run_folder import write_text_file
from truthgpt_serve.training.run_record import is_finished, read_record
from truthgpt_serve.training.shown_config import hide_secrets

FILE = "report.html"
MAX_RUNS = 12
"""Runs of one page."""
MAX_CHARTS = 40
"""Charts of one page; the losses come first."""
MAX_TEXT = 2000
"""Characters of one value of the configuration."""
_FIRST = ("loss", "learning_rate", "grad_norm", "units_per_second", "memory_bytes")
_NOT_CURVES = frozenset({"event", "at", "step"})
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--rule:#d0d7de;--soft:#57606a;
--c0:#0969da;--c1:#cf222e;--c2:#1a7f37;--c3:#8250df;--c4:#9a6700;--c5:#0e7c86}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--rule:#30363d;
--soft:#9198a1;--c0:#58a6ff;--c1:#ff7b72;--c2:#56d364;--c3:#d2a8ff;--c4:#e3b341;--c5:#39c5cf}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:72rem;padding:0 1rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:1rem}
figure{margin:0;border:1px solid var(--rule);border-radius:6px;padding:.5rem}
.chart{width:100%;height:auto}.chart text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--rule)}polyline{fill:none;stroke-width:1.8}
.line-0{stroke:var(--c0)}.line-1{stroke:var(--c1)}.line-2{stroke:var(--c2)}
.line-3{stroke:var(--c3)}.line-4{stroke:var(--c4)}.line-5{stroke:var(--c5)}
.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{border-bottom:1px solid var(--rule);padding:.25rem .75rem .25rem 0;text-align:left;
vertical-align:top;overflow-wrap:anywhere}td pre{margin:0;white-space:pre-wrap;max-width:32rem;
overflow-wrap:anywhere}td img{max-width:16rem;height:auto}.fault{color:var(--soft)}
.swatch{width:1.5em;height:.5em}
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a page says of a run.

    Attributes:
        name: As it is shown.
        record: Its `run.json`.
        events: Its log.
        finished: Whether it has its result.
        samples: What the model made of some prompts, oldest first.
    """

    name: str
    record: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    finished: bool
    samples: Sequence[KeptSample] = ()

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Returns the points of each curve, by `train/<name>` or `eval/<name>`."""
        found: dict[str, list[tuple[float, float]]] = {}
        for event in self.events:
            group = {"step": "train", "evaluated": "eval"}.get(str(event["event"]))
            step = event.get("step")
            if group is None or not isinstance(step, int):
                continue
            for name, value in event.items():
                if name not in _NOT_CURVES and isinstance(value, int | float):
                    found.setdefault(f"{group}/{name}", []).append((step, float(value)))
        return found


def load_run(folder: Path) -> Run:
    """Returns what there is of the run in a folder.

    Raises:
        TrainingError: There is no run.
    """
    record = read_record(folder)
    if record is None:
        fix = "name the folder of a run, such as runs/tales"
        raise TrainingError(f"{folder}: there is no run ({fix})")
    name = str(record.get("config", {}).get("run_name") or folder.name)
    # A record of an earlier release has secrets in it.
    config = hide_secrets(record.get("config") or {})
    record = {**record, "config": config}
    return Run(name, record, read_events(folder), is_finished(folder), read_samples(folder))


def write_report(folders: Sequence[Path], file: Path | None = None) -> Path:
    """Writes the page of one run, or of several that are compared.

    Args:
        folders: Of the runs.
        file: Where to; by default `report.html` in the first run's folder.

    Returns:
        The file.

    Raises:
        TrainingError: There is no run in one of the folders, or there are too many.
    """
    if len(folders) > MAX_RUNS:
        raise TrainingError(f"{len(folders)} runs are too many for one page (at most {MAX_RUNS})")
    runs = [load_run(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        runs = [replace(run, name=str(folder)) for folder, run in zip(folders, runs, strict=True)]
    target = file or folders[0] / FILE
    # Half a surrogate pair, which a log may hold, becomes a question mark.
    write_text_file(target, create_page(runs).encode("utf-8", "replace").decode())
    return target


def create_page(runs: Sequence[Run]) -> str:
    """Returns the page; whatever runs hold stands in it as text."""
    title = escape(", ".join(run.name for run in runs))
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{title}</title><style>{_STYLE}</style></head><body><main>",
            f"<h1>{title}</h1>",
            _summary(runs),
            '<h2>Curves</h2><div class="charts">',
            *_charts(runs),
            "</div>",
            draw_samples({run.name: run.samples for run in runs}),
            *_workers(runs),
            "<h2>Configuration</h2>",
            _table(["key", *[run.name for run in runs]], _configuration(runs)),
            "<h2>Versions</h2>",
            _table(["package", *[run.name for run in runs]], _versions(runs)),
            "</main></body></html>\n",
        ]
    )


def _summary(runs: Sequence[Run]) -> str:
    rows = []
    for number, run in enumerate(runs):
        curves = run.curves()
        loss, held_out = curves.get("train/loss", []), curves.get("eval/loss", [])
        held_out = held_out or curves.get("eval/eval_loss", [])
        last = f"{loss[-1][1]:.4f}" if loss else ""
        best = f"{min(value for _, value in held_out):.4f}" if held_out else ""
        steps = f"{loss[-1][0]:,}" if loss else "0"
        state = "finished" if run.finished else _why_not(run.events)
        data = str(run.record.get("config", {}).get("data", {}).get("dataset"))
        rows.append([run.name, state, steps, last, best, data, _swatch(number)])
    heads = ["run", "state", "steps", "last loss", "best evaluation loss", "data", "color"]
    return _table(heads, rows, marked=True)


def _why_not(events: Sequence[Mapping[str, Any]]) -> str:
    for event in reversed(events):
        if event["event"] == "failed":
            return f"failed: {event.get('message')}"
        if event["event"] == "step":
            break
    return "not finished"


def _swatch(number: int) -> str:
    color = f"fill:var(--c{number % 6})"
    box = f'<rect width="100%" height="100%" style="{color}"/>'
    return f'<svg class="swatch" aria-hidden="true">{box}</svg>'


def _charts(runs: Sequence[Run]) -> Iterator[str]:
    curves = [run.curves() for run in runs]
    for name in sorted({name for found in curves for name in found}, key=_order)[:MAX_CHARTS]:
        lines = [
            Line(run.name, found.get(name, ()), number)
            for number, (run, found) in enumerate(zip(runs, curves, strict=True))
        ]
        if chart := draw(name, lines):
            yield f"<figure><figcaption>{escape(name)}</figcaption>{chart}</figure>"


def _workers(runs: Sequence[Run]) -> Iterator[str]:
    """Yields a table of what each worker took, of runs with several."""
    rows = []
    for run in runs:
        steps = [event["workers"] for event in run.events if event.get("workers")]
        for rank, last in enumerate(steps[-1] if steps else ()):
            rates = [step[rank]["units_per_second"] for step in steps if rank < len(step)]
            rate, memory = statistics.median(rates), last["memory_bytes"]
            rows.append([run.name, str(rank), f"{rate:,.1f}", f"{memory / 2**20:,.0f} MiB"])
    if rows:
        yield "<h2>Workers</h2>"
        yield _table(["run", "worker", "units a second", "most memory"], rows)


def _order(name: str) -> tuple[int, str]:
    plain = name.partition("/")[2].removeprefix("eval_")
    return (_FIRST.index(plain) if plain in _FIRST else len(_FIRST), name)


def _configuration(runs: Sequence[Run]) -> list[list[str]]:
    found = [dict(leaves_of(run.record.get("config", {}))) for run in runs]
    keys = dict.fromkeys(key for leaves in found for key in leaves)
    return [[key, *[leaves.get(key, "") for leaves in found]] for key in keys]


def leaves_of(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields each key that is set."""
    for name, value in section.items() if isinstance(section, Mapping) else ():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from leaves_of(value, f"{key}.")
        elif value is not None:
            yield key, _shown(value)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def _versions(runs: Sequence[Run]) -> list[list[str]]:
    found = [run.record.get("versions") or {} for run in runs]
    names = sorted({name for versions in found for name in versions})
    return [[name, *[str(versions.get(name, "")) for versions in found]] for name in names]


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]], *, marked: bool = False) -> str:
    """Returns a table of texts; with `marked` the last cell of a row is an element of ours."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    lines = []
    for first, *rest in rows:
        cells = [escape(_shown(text)) for text in rest]
        if marked:
            cells[-1] = rest[-1]
        joined = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(_shown(first))}</th>{joined}</tr>')
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
