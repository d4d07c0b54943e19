"""Adds a model to a Serve file as text, so that its comments stay, before the router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from truthgpt_serve.validate.applications import MODEL_IMPORT, ROUTER_IMPORT, import_target


class InsertError(Exception):
    """The file has a form into which nothing can be inserted; the message says what to do."""


def entry_of(name: str, config: str) -> dict[str, Any]:
    """Returns a model's application as a Serve file has it."""
    return {
        "name": name,
        "route_prefix": f"/models/{name}",
        "import_path": MODEL_IMPORT,
        "args": {"config": config},
    }


def entry_text(name: str, config: str, indent: str = "  ", end: str = "\n") -> list[str]:
    """Returns the lines of a model's application, each with its line break."""
    return lines_of([entry_of(name, config)], indent, end)


def lines_of(value: Any, indent: str, end: str) -> list[str]:
    """Returns a value as lines of YAML, each with its line break."""
    lines = yaml.safe_dump(value, sort_keys=False, width=10_000, allow_unicode=True).splitlines()
    return [f"{indent}{line}{end}" for line in lines]


def add_model(text: str, name: str, config: str) -> str:
    """Returns the text of a Serve file with one more model, before the router or at the end.

    Args:
        text: The file, with its line breaks as they are.
        name: The model's name.
        config: Its file, from the configurations' folder.

    Raises:
        InsertError: The file cannot be read, has the name already, or lists its applications in one
            line.
    """
    return add_application(text, entry_of(name, config))


def add_application(text: str, entry: dict[str, Any]) -> str:
    """Does the same for any application; arguments and errors as of `add_model`.

    Args:
        text: The file.
        entry: The application.
    """
    before, applications = _read(text)
    name = entry["name"]
    if any(one.get("name") == name for one in before["applications"]):
        raise InsertError(f"it has an application {name!r} already: choose another name")
    lines = text.splitlines(keepends=True)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    at = _find_place(lines, applications, before["applications"])
    column = applications.value[0].start_mark.column
    indent = " " * lines[applications.value[0].start_mark.line].index("-", 0, column)
    lines[at:at] = lines_of([entry], indent, end)
    result = "".join(lines)
    _check(result, before, entry)
    return result


def _read(text: str) -> tuple[dict[str, Any], yaml.SequenceNode]:
    try:
        data = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InsertError(f"it is not YAML: {' '.join(str(error).split())}") from error
    found = value_of(node, "applications")
    applications = data.get("applications") if isinstance(data, dict) else None
    if not isinstance(found, yaml.SequenceNode) or not isinstance(applications, list):
        raise InsertError("it has no list `applications`")
    if found.flow_style or not applications or not all(isinstance(a, dict) for a in applications):
        raise InsertError("its `applications` are not listed one below the other")
    return data, found


def value_of(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _find_place(
    lines: list[str], node: yaml.SequenceNode, applications: list[dict[str, Any]]
) -> int:
    """Returns the line before which the entry goes: comments above the router stay with it."""
    for item, application in zip(node.value, applications, strict=True):
        if import_target(application.get("import_path")) == ROUTER_IMPORT:
            at = int(item.start_mark.line)
            while at and lines[at - 1].lstrip().startswith("#"):
                at -= 1
            return at
    at = max(end_lines(node.value[-1])) + 1
    while not lines[at - 1].strip():  # a block of text has the empty lines behind it
        at -= 1
    return at


def end_lines(node: yaml.Node) -> Iterator[int]:
    """Yields the lines on which the values in a node end."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield from end_lines(key)
            yield from end_lines(value)
    elif isinstance(node, yaml.SequenceNode) and not node.flow_style:
        for value in node.value:
            yield from end_lines(value)
    else:
        # A block of text ends at the beginning of the line behind it.
        end = node.end_mark
        yield end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line


def _check(text: str, before: dict[str, Any], entry: dict[str, Any]) -> None:
    """Raises InsertError if the file now says anything but what it said, with the entry."""
    try:
        after = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise InsertError("the entry cannot be inserted as text") from error
    rest = [one for one in after["applications"] if one != entry]
    same = {**after, "applications": rest} == before
    if not same or len(after["applications"]) != len(rest) + 1:
        raise InsertError("the entry cannot be inserted as text")
