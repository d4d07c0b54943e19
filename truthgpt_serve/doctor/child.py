"""The process in which one family is tried: `python -m truthgpt_serve.doctor.child OUT`.

Reads what to try from standard input, and writes each probe to OUT at once, so that what was found
before a library took the process down is not lost.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from truthgpt_serve.contract import MAX_DETAIL, Doctor, Probe
from truthgpt_serve.registry import MODEL_REGISTRY

IMPORT_FIX = "install the extra that brings its engine, or reinstall it"


def main(out: Path, request: dict[str, Any]) -> None:
    """Tries one family.

    Args:
        out: Where the probes go, a JSON object in each line, with `target`: the place in `targets`.
        request: `family`, and `targets`: configurations as nested dicts, or null for everything.
    """
    with out.open("a", encoding="utf-8") as file:
        doctor: Doctor | None = None
        try:
            doctor = MODEL_REGISTRY.find(request["family"]).load_doctor()
        except Exception as error:  # an engine's import may fail in any way
            probe = _failed("import", "its engine does not import", error, IMPORT_FIX)
            for number in range(len(request["targets"])):
                _write(file, number, probe)
        for number, target in enumerate(request["targets"]):
            if doctor is not None:
                _examine(file, number, doctor, target)
            file.write(json.dumps({"target": number, "end": True}) + "\n")
            file.flush()


def _examine(file: TextIO, number: int, doctor: Doctor, target: dict[str, Any] | None) -> None:
    try:
        for probe in doctor(target):
            _write(file, number, probe)
    except Exception as error:  # a probe that has no guard of its own
        _write(file, number, _failed("examination", "it failed itself", error))


def _failed(name: str, what: str, error: Exception, fix: str = "") -> Probe:
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    return Probe(name, False, f"{what}: {reason[:MAX_DETAIL]}", fix)


def _write(file: TextIO, number: int, probe: Probe) -> None:
    file.write(json.dumps({"target": number, **asdict(probe)}) + "\n")
    file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))
