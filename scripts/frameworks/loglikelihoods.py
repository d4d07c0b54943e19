"""Compares the log likelihoods that lm-eval got from the families."""

from __future__ import annotations

import json
from pathlib import Path

TOLERANCE = 1e-3
"""Nats for a whole continuation; all families compute in float32."""


def compare(work: Path, families: list[str]) -> list[str]:
    """Prints the largest difference to the first family; returns those that are too large.

    Args:
        work: The folder with the results.
        families: The families, the first of which the others are compared with.
    """
    found = {}
    for family in families:
        path = work / f"lm-eval.{family}.json"
        if path.exists():
            found[family] = json.loads(path.read_text())
    faults = []
    first = next(iter(found), "")
    for family, values in found.items():
        if family == first:
            continue
        pairs = zip(values, found[first], strict=True)
        largest = max((abs(own - other) for own, other in pairs), default=float("inf"))
        line = (
            f"log likelihoods of {family} and {first}: {len(values)}, apart {largest:.2g} at most"
        )
        print(line)
        if not largest <= TOLERANCE:
            faults.append(f"{line}, more than {TOLERANCE:g}")
    return faults
