"""Draws the result of `router_tax.py`; knows the layout of its JSON only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TARGETS = {"unary": 0.95, "stream": 0.90}


def draw(report: dict[str, Any], path: Path) -> None:
    """Writes a bar chart of the throughput ratios, with the targets at 16 clients as lines."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    names = list(report["cases"])
    ratios = [report["cases"][name]["throughput_ratio"] for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(names) + 1.5))
    axes.barh(names[::-1], ratios[::-1], color="#4477aa")
    for kind, target in TARGETS.items():
        axes.axvline(target, linestyle="--", linewidth=1, color="#cc6677", label=f"{kind} {target}")
    axes.set_xlabel("requests per second, as a ratio to the bare server")
    axes.set_xlim(0, max(1.1, *ratios))
    axes.legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
