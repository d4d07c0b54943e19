"""Checks plain data against a model of it, with every fault at once and variables put in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from truthgpt_serve.config.base import Section, show_value
from truthgpt_serve.config.faults import faults_of, in_file_order, places
from truthgpt_serve.config.source import KeyPath, Source, dotted
from truthgpt_serve.config.variables import Expanded, VariableError, expand, read_scalar
from truthgpt_serve.errors import Fault

SectionT = TypeVar("SectionT", bound=Section)

_ENGINE = ("serving", "engine")


def parse(
    model: type[SectionT], data: Any, source: Source
) -> tuple[SectionT | None, list[Fault], list[KeyPath]]:
    """Checks `data` against `model`.

    Returns:
        What is left of the configuration when the faulty keys take their defaults (None if nothing
        is), the faults, and the path of each.
    """
    if not isinstance(data, Mapping):
        found = "it is empty" if data is None else f"not {show_value(data)}"
        message = f"must be a mapping of keys to values, {found}"
        return None, [Fault(source.at(), message)], [()]
    faults: list[Fault] = []
    removed: list[KeyPath] = []
    if source.has_variables:
        data = _expand_values(data, source, (), faults, removed)
    config: SectionT | None
    # A section with a faulty value is not cross-checked: its sound part gets another round. Only
    # our own cross-checks are left for later rounds, so three are enough.
    for _ in range(3):
        try:
            config = model.model_validate(_without(data, removed))
            break
        except ValidationError as error:
            faulty = {fault.place for fault in faults}  # a required key that was taken out is one
            further = faults_of(error, model, source, removed)
            faults += [fault for fault in further if fault.place not in faulty]
            removed += places(error)
    else:
        config = None
    return config, source.hidden.hide_faults(in_file_order(faults, source)), removed


def _expand_values(
    data: Any, source: Source, path: KeyPath, faults: list[Fault], removed: list[KeyPath]
) -> Any:
    """Returns a nested value with its variables, and notes those that cannot be read."""
    if isinstance(data, dict):
        return {
            key: _expand_values(value, source, (*path, key), faults, removed)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [
            _expand_values(value, source, (*path, index), faults, removed)
            for index, value in enumerate(data)
        ]
    if not isinstance(data, str):
        return data
    try:
        value = expand(data)
    except VariableError as error:
        faults.append(Fault(source.at(*path), error.message, error.fix))
        removed.append(path)
        return data
    source.hidden.add(value, dotted((*source.prefix, *path)))
    if path[:2] == _ENGINE and isinstance(value, Expanded) and value.is_whole:
        return read_scalar(value)  # an engine's types are not known here
    return value


def _without(data: Mapping[Any, Any], paths: list[KeyPath]) -> Any:
    """Returns a copy without the values at `paths`; a faulty list goes as a whole."""
    rest = copy.deepcopy(dict(data))
    for path in paths:
        names = path[: next((i for i, key in enumerate(path) if isinstance(key, int)), len(path))]
        here: Any = rest
        for key in names[:-1]:
            here = here.get(key) if isinstance(here, dict) else None
        if names and isinstance(here, dict):
            here.pop(names[-1], None)
    return rest
