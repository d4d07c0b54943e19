"""Reads YAML so that every value keeps its line, and names places in it for faults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from truthgpt_serve.config.base import SCIENTIFIC
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.errors import ConfigError, Fault

Key = str | int
KeyPath = tuple[Key, ...]

MAX_FILE_BYTES = 1024 * 1024
MAX_NODES = 50_000
"""Aliases let a small file stand for an endless tree: this many values are read, then it fails."""


def dotted(path: KeyPath) -> str:
    """Returns `("serving", "adapters", 0, "name")` as `serving.adapters[0].name`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def parse_dotted(text: str) -> KeyPath:
    """Returns the path that `dotted` would write as `text`."""
    path: list[Key] = []
    for name, index in re.findall(r"([^.\[\]]+)(?![^\[]*\])|\[(\d+)\]", text):
        path.append(int(index) if index else name)
    return tuple(path)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration stands.

    Attributes:
        file: File name as the user gave it, or another name of the place.
        prefix: Path inside that file at which the configuration begins.
        lines: Line of each path of the whole file; empty where there is no file.
        directory: Folder of the file, or None.
        written: How each value that YAML takes for no text stands in the file, by its path.
        has_variables: Whether texts in it may name variables of the environment.
        hidden: What these held, so that messages do not show it.
    """

    file: str = "configuration"
    prefix: KeyPath = ()
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    directory: Path | None = None
    written: Mapping[KeyPath, str] = field(default_factory=dict)
    has_variables: bool = False
    hidden: HiddenValues = field(default_factory=HiddenValues)

    def at(self, *path: Key) -> str:
        """Returns the place of `path` as `file:line: dotted.path`."""
        whole = (*self.prefix, *path)
        line = next(
            (self.lines[whole[:n]] for n in range(len(whole), -1, -1) if whole[:n] in self.lines),
            None,
        )
        place = self.file if line is None else f"{self.file}:{line}"
        return f"{place}: {dotted(whole)}" if whole else place

    def under(self, *path: Key) -> Source:
        """Returns the source of the part at `path`."""
        return replace(self, prefix=(*self.prefix, *path))

    def written_at(self, *path: Key) -> str | None:
        """Returns how a value stands in the file, or None for a text or where there is no file."""
        return self.written.get((*self.prefix, *path))


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Ray reads it."""


class _NumberLoader(_Loader):
    """The same, and `5e-5` is a number, as in YAML 1.2."""


_NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^(?:{SCIENTIFIC.pattern})$"), list("-+.0123456789")
)


class Document(NamedTuple):
    """What a YAML document holds.

    Attributes:
        value: Its value.
        lines: The line (from 1) of each path in it.
        written: How each value that YAML takes for no text is written, by its path.
    """

    value: Any
    lines: dict[KeyPath, int]
    written: dict[KeyPath, str]


def read_yaml(text: str, file: str, *, numbers: bool = True) -> Document:
    """Reads one YAML document.

    Args:
        text: The document.
        file: Its name, for faults.
        numbers: Read `5e-5` as a number; Ray's own loader, so a Serve file, does not.

    Raises:
        ConfigError: Not YAML, several documents, a key given twice, a number that YAML 1.1 reads
            as another one, or too large.
    """
    check_length(text, file)
    loader = None
    try:
        loader = (_NumberLoader if numbers else _Loader)(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {}, {})
        walk = _Walk(file)
        walk.visit(node, (), ())
        if walk.faults:
            raise ConfigError(walk.faults)
        return Document(loader.construct_document(node), walk.lines, walk.written)
    except yaml.YAMLError as error:
        raise _syntax_fault(error, file) from error
    except RecursionError as error:
        raise _fault(file, "is nested too deeply", "flatten it") from error
    except (ValueError, OverflowError) as error:
        raise _fault(file, f"is not valid YAML: {error}", "correct the value") from error
    finally:
        if loader is not None:
            loader.dispose()


def check_length(content: str | bytes, file: str) -> None:
    """Refuses a document above the limit.

    Args:
        content: The document, or as much of it as was read.
        file: Its name, for faults.

    Raises:
        ConfigError: It is too large.
    """
    if len(content) > MAX_FILE_BYTES:
        unit = "characters" if isinstance(content, str) else "bytes"
        raise _fault(file, f"is larger than {MAX_FILE_BYTES} {unit}", "split it")


def _fault(place: str, message: str, fix: str) -> ConfigError:
    return ConfigError([Fault(place, message, fix)])


def _syntax_fault(error: yaml.YAMLError, file: str) -> ConfigError:
    if isinstance(error, yaml.reader.ReaderError):
        message = f"is not valid YAML: the character {error.character:#06x} is not allowed"
        return _fault(file, message, "remove it")
    if not isinstance(error, yaml.MarkedYAMLError):
        return _fault(file, f"is not valid YAML: {error}", "correct it")
    mark = error.problem_mark or error.context_mark
    place = file if mark is None else f"{file}:{mark.line + 1}"
    problem = error.problem or "malformed"
    if "found character '\\t'" in problem:
        return _fault(place, "is not valid YAML: a tab in the indentation", "use spaces")
    if "but found another document" in problem:
        return _fault(place, "holds more than one YAML document", "keep one per file, without ---")
    column = f" at column {mark.column + 1}" if mark is not None else ""
    return _fault(place, f"is not valid YAML: {problem}{column}", "check indentation and quotes")


_MISREAD = re.compile(r"[-+]?0[0-7_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""Numbers that people do not mean so: in base 8, and in base 60 with colons."""
_TEXT_TAG = "tag:yaml.org,2002:str"
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Walk:
    """Collects the line of each path, keys that are given twice and numbers that are misread."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.written: dict[KeyPath, str] = {}
        self.faults: list[Fault] = []
        self._count = 0

    def visit(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> None:
        self._count += 1
        if id(node) in above or self._count > MAX_NODES:
            line = node.start_mark.line + 1
            raise _fault(f"{self.file}:{line}", "an alias repeats itself", "write the values out")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            self._visit_scalar(node, path)
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, path, (*above, id(node)))
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index), (*above, id(node)))

    def _visit_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> None:
        if node.tag == _TEXT_TAG:
            return
        text = str(node.value)
        self.written[path] = text
        if node.style is not None or node.tag not in _NUMBER_TAGS or not _MISREAD.fullmatch(text):
            return
        value = yaml.safe_load(text)
        plain = text.replace("_", "")
        if plain.lstrip("+-").isdigit() and int(plain) == value:
            return
        place = f"{self.file}:{node.start_mark.line + 1}: {dotted(path)}"
        message = f"{text} is the number {value} in YAML 1.1"
        fix = f"write '{text}' if it is a text, or {value} if it is that number"
        self.faults.append(Fault(place, message, fix))

    def _visit_mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> None:
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                place = f"{self.file}:{line}"
                self.faults.append(Fault(place, "a key must be plain text", "quote it"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in seen:
                self.faults.append(
                    Fault(
                        f"{self.file}:{line}: {dotted(here)}",
                        f"is given twice, first on line {seen[key]}",
                        "keep one",
                    )
                )
                continue
            seen[key] = line
            self.lines[here] = line
            self.visit(value, here, above)
