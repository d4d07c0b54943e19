"""Plants a mistake into the manifests of k8s/, and says which rules find it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from tests.support.k8s_manifests import (
    COMPONENTS,
    REMOVE,
    Manifest,
    at,
    parse,
    run_kustomize,
    spoiled,
    write_overlay,
)
from tests.support.k8s_rules import RULES


@functools.cache
def _text_of_all_components() -> str:
    with tempfile.TemporaryDirectory() as folder:
        together = tuple(name for name in COMPONENTS if "incremental" not in name)
        done = run_kustomize(write_overlay(Path(folder), together))
    assert done.returncode == 0, done.stderr
    return done.stdout


def all_components() -> list[Manifest]:
    """Returns a build with every component that goes together with the others."""
    return parse(_text_of_all_components())


def spoil(manifests: list[Manifest], place: str, value: Any) -> list[Manifest]:
    """Changes one value.

    Args:
        manifests: A build, which is not changed.
        place: `Kind[/name, or its start]:path`.
        value: What to put there, or `REMOVE`; a tuple of two texts replaces the first by the other.
    """
    target, _, path = place.partition(":")
    kind, _, name = target.partition("/")
    chosen = _choose(manifests, kind, name)
    file = path.removeprefix("data.") if path.startswith("data.") else None
    if isinstance(value, tuple):
        old = at(chosen, path) if file is None else chosen["data"][file]
        assert value[0] in old, (place, value)
        value = old.replace(*value)
    if file is None:
        changed = spoiled(chosen, path, value)
    else:  # a file's name has dots, too
        data = {key: text for key, text in chosen["data"].items() if key != file}
        changed = {**chosen, "data": data if value is REMOVE else {**data, file: value}}
    return [changed if manifest is chosen else manifest for manifest in manifests]


def _choose(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    found = [one for one in manifests if one["kind"] == kind]
    exact = [one for one in found if one["metadata"]["name"] == name]
    return (exact or [one for one in found if one["metadata"]["name"].startswith(name)])[0]


def faults(manifests: list[Manifest]) -> dict[str, list[str]]:
    """Returns what is wrong, by the name of the rule."""
    found = {rule.__name__: list(rule(manifests)) for rule in RULES}
    return {name: texts for name, texts in found.items() if texts}
