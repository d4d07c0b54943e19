"""Adds an adapter to a model's YAML as text, so that comments and line breaks stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from truthgpt_serve.cli._init.serve_file import InsertError, end_lines, lines_of, value_of

Key = str | int


def add_adapter(text: str, path: Sequence[Key], entry: Mapping[str, str]) -> str:
    """Returns the text of a YAML file with one more entry of `serving.adapters`.

    Args:
        text: The file, with its line breaks as they are.
        path: Where the model's keys are in it; empty for a file that has only those.
        entry: The adapter's name and path.

    Raises:
        InsertError: The file cannot be read, has such an adapter, or a form without a place for it.
    """
    try:
        before, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
        model = _copy(before)
        for key in path:
            node = _child(node, key)
    except (yaml.YAMLError, IndexError) as error:
        raise InsertError(f"it is not YAML: {' '.join(str(error).split())}") from error
    expected = model
    for key in path:
        model = model[key]
    serving = (model.get("serving") or {}) if isinstance(model, dict) else None
    adapters = (serving.get("adapters") or []) if isinstance(serving, dict) else None
    if serving is None or not isinstance(adapters, list):
        raise InsertError("it has no keys of a model")
    if any(one.get("name") == entry["name"] for one in adapters if isinstance(one, dict)):
        raise InsertError(f"it has an adapter {entry['name']!r} already: choose another name")
    model["serving"] = {**serving, "adapters": [*adapters, dict(entry)]}
    result = _insert(text, node, dict(entry))
    try:
        same = yaml.safe_load(result) == expected
    except (yaml.YAMLError, ValueError):
        same = False
    if not same:
        raise InsertError("the entry cannot be inserted as text")
    return result


def _child(node: yaml.Node | None, key: Key) -> yaml.Node | None:
    if isinstance(key, int) and isinstance(node, yaml.SequenceNode):
        child: yaml.Node = node.value[key]
        return child
    return value_of(node, str(key))


def _copy(value: Any) -> Any:
    """Returns a copy in which what YAML shares by aliases is no longer shared."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _insert(text: str, node: yaml.Node | None, entry: dict[str, str]) -> str:
    serving = value_of(node, "serving")
    if serving is None:
        return _add(text, node, {"serving": {"adapters": [entry]}})
    adapters = value_of(serving, "adapters")
    if adapters is None:
        return _add(text, serving, {"adapters": [entry]})
    return _add(text, adapters, [entry])


def _add(text: str, node: yaml.Node | None, more: Any) -> str:
    """Returns a text with one more item of the mapping or list `node`."""
    if node is None:
        raise InsertError("it has no keys of a model")
    if not isinstance(node, yaml.CollectionNode) or not node.value:
        start, stop = int(node.start_mark.index), int(node.end_mark.index)
        space = "" if text[:start].endswith((" ", "\n")) else " "
        return f"{text[:start]}{space}{_flow(more)}{text[stop:]}"
    if node.flow_style:
        last = node.value[-1]
        at = int((last[1] if isinstance(last, tuple) else last).end_mark.index)
        return f"{text[:at]}, {_flow(more)[1:-1]}{text[at:]}"
    lines = text.splitlines(keepends=True)
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if not lines[-1].endswith("\n"):
        lines[-1] += end
    at = max(end_lines(node)) + 1
    while not lines[at - 1].strip():  # a block of text has the empty lines behind it
        at -= 1
    lines[at:at] = lines_of(more, _indent(lines, node), end)
    return "".join(lines)


def _indent(lines: list[str], node: yaml.CollectionNode) -> str:
    """Returns what stands before the first key or dash of a block."""
    if isinstance(node, yaml.MappingNode):
        return " " * int(node.value[0][0].start_mark.column)
    mark = node.value[0].start_mark
    return " " * lines[int(mark.line)].rindex("-", 0, int(mark.column))


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip()
