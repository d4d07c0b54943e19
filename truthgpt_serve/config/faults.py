"""Turns pydantic's errors into faults that name place, value and fix.

Works for any pydantic model, an engine's or Ray's too.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from truthgpt_serve.config.base import PATTERN_WORDS, Refusal, show_value
from truthgpt_serve.config.source import Key, KeyPath, Source, parse_dotted
from truthgpt_serve.errors import Fault
from truthgpt_serve.wording import choices_of, nearest, unknown_field, words_of

NamePath = tuple[str, ...]
_WRONG_KIND = ("string_type", "list_type")
_UNION_MEMBERS = ("int", "str", "float", "bool")


def models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], bool]]:
    """Yields each pydantic model in an annotation, and whether it stands in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, False
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        for part in typing.get_args(annotation):
            yield from models_in(part)
    elif typing.get_origin(annotation) in (list, typing.Annotated):
        in_list = typing.get_origin(annotation) is list
        for model, nested in models_in(typing.get_args(annotation)[0]):
            yield model, in_list or nested


def field_names(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the annotation of each key, under the name that a file uses."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def known_paths(model: type[BaseModel], prefix: NamePath = ()) -> list[NamePath]:
    """Returns every key that a model and its sections have; a list is marked `name[]`."""
    paths: list[NamePath] = []
    for name, annotation in field_names(model).items():
        paths.append((*prefix, name))
        for part, in_list in models_in(annotation):
            paths += known_paths(part, (*prefix, f"{name}[]" if in_list else name))
    return paths


def nearest_key(path: KeyPath, known: Iterable[NamePath]) -> str | None:
    """Returns the valid key that `path` probably means, or None.

    A key of the same name in another section comes before a similar one in the same section: a key
    is more often in the wrong place than mistyped into another existing one.
    """
    *section, key = _names(path)
    wanted = key.lower().replace("-", "_").removesuffix("[]")
    here = {p[-1]: p for p in known if list(p[:-1]) == section}
    elsewhere = {p[-1]: p for p in known if list(p[:-1]) != section}
    if wanted in here:
        return _show(here[wanted])
    if wanted in elsewhere:
        return _show(elsewhere[wanted])
    for names, cutoff in ((here, 0.65), (elsewhere, 0.8)):
        found = nearest(wanted, names, cutoff)
        if found:
            return _show(names[found])
    return None


def _names(path: KeyPath) -> NamePath:
    names: list[str] = []
    for key in path:
        if isinstance(key, int) and names:
            names[-1] += "[]"
        else:
            names.append(str(key))
    return tuple(names)


def _show(path: NamePath) -> str:
    return ".".join(path)


def unknown_key(path: KeyPath, known: list[NamePath], source: Source, shown: str = "") -> Fault:
    """Returns the fault of a key that no section has at `path`; `shown` precedes a suggestion."""
    near = nearest_key(path, known)
    if near is not None:
        fix = f"did you mean {shown}{near}?"
    else:
        section = list(_names(path)[:-1])
        fix = "valid keys here: " + ", ".join(p[-1] for p in known if list(p[:-1]) == section)
    return Fault(source.at(*path), unknown_field(path[-1]), fix)


def _words(detail: ErrorDetails) -> tuple[str, str]:
    """Returns what is wrong with a value, and a fix or an empty string."""
    kind, value = detail["type"], detail["input"]
    if kind == "string_pattern_mismatch":
        pattern = str(detail["ctx"]["pattern"])
        message = f"{show_value(value)} is not usable here"
        return message, PATTERN_WORDS.get(pattern, f"match {pattern}")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        if value is None:
            return "is empty", "give it keys, or remove it for the defaults"
        return f"must be a mapping of keys to values, not {show_value(value)}", ""
    quotable = kind == "string_type" and not isinstance(value, dict | list)
    fix = "put it in quotes" if quotable else ""
    if kind in ("literal_error", "enum"):
        near = nearest(value, choices_of(detail))
        fix = f"did you mean {near}?" if near else ""
    return words_of(detail, show_value), fix


def faults_of(
    error: ValidationError,
    model: type[BaseModel],
    source: Source,
    removed: Iterable[KeyPath] = (),
) -> list[Fault]:
    """Returns the faults in the order of the file.

    Args:
        error: What pydantic found.
        model: The model it found it with.
        source: Where the data stands.
        removed: Paths of faulty values that were removed before: a verdict that rests on one of
            them is left out.
    """
    known = known_paths(model)
    gone = tuple(removed)
    found: dict[Fault, None] = {}
    for detail in _without_other_kinds(error.errors(include_url=False)):
        found.update(dict.fromkeys(_faults(detail, known, source, gone)))
    return in_file_order(found, source)


def _without_other_kinds(details: list[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Yields one error of a value that may be a text or a list: that of the kind which it is."""
    paths = [_clean(detail["loc"]) for detail in details]
    kinds = [detail["type"] in _WRONG_KIND for detail in details]
    for at, path in enumerate(paths):
        others = [
            len(below) > len(path) or not kinds[other] or other < at
            for other, below in enumerate(paths)
            if other != at and below[: len(path)] == path
        ]
        if not (kinds[at] and any(others)):
            yield details[at]


def in_file_order(faults: Iterable[Fault], source: Source) -> list[Fault]:
    """Returns the faults sorted by the line of `source` that they name."""
    return sorted(faults, key=lambda fault: _line(fault, source))


def _line(fault: Fault, source: Source) -> int:
    line = fault.place.removeprefix(f"{source.file}:").partition(":")[0]
    return int(line) if line.isdigit() else 0


def _faults(
    detail: ErrorDetails, known: list[NamePath], source: Source, removed: tuple[KeyPath, ...]
) -> list[Fault]:
    path = _clean(detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return [unknown_key(detail["loc"], known, source)]
    if kind == "invalid_key":
        parent = tuple(detail["loc"][:-1])
        message = f"the key {show_value(detail['input'])} is not text"
        return [Fault(source.at(*parent), message, "put it in quotes")]
    if kind == "refused":
        return [
            Fault(source.at(*path, *parse_dotted(refusal.key)), refusal.message, refusal.fix)
            for refusal in context["refusals"]
            if not _rests_on(removed, path, refusal)
        ]
    if kind == "missing" and any(given[: len(path)] == path for given in removed):
        return []
    if kind == "string_type" and (fault := _misread(detail, path, source)) is not None:
        return [fault]
    return [Fault(source.at(*path), *_words(detail))]


def _misread(detail: ErrorDetails, path: KeyPath, source: Source) -> Fault | None:
    """Returns the fault of a word that YAML reads as something else than a text."""
    value, written = detail["input"], source.written_at(*path)
    if written is None or value is None or written == str(value):
        return None
    message = f"must be a string, and YAML reads {written} as {show_value(value)}"
    return Fault(source.at(*path), message, f"write '{written}'")


def _rests_on(removed: tuple[KeyPath, ...], section: KeyPath, refusal: Refusal) -> bool:
    used = [(*section, *parse_dotted(key)) for key in (refusal.key, *refusal.uses)]
    return any(path[: len(gone)] == gone for path in used for gone in removed)


def _clean(location: tuple[Key, ...]) -> KeyPath:
    """Drops what pydantic adds to a location for a union: `dict[any,any]` or a class's name."""
    return tuple(key for key in location if isinstance(key, int) or _is_key(key))


def _is_key(key: str) -> bool:
    if key.removeprefix("constrained-") in _UNION_MEMBERS:
        return False
    return "[" not in key and not key[:1].isupper()


def places(error: ValidationError) -> list[KeyPath]:
    """Returns the path of every faulty value, for leaving these out."""
    found: list[KeyPath] = []
    for detail in error.errors(include_url=False):
        extra = detail["type"] == "extra_forbidden"
        path = detail["loc"] if extra else _clean(detail["loc"])
        refusals = detail.get("ctx", {}).get("refusals", ())
        found += [(*path, *parse_dotted(refusal.key)) for refusal in refusals] or [path]
    return found
