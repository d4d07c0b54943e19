"""Shows variables in messages as they were written, in place of their values."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from truthgpt_serve.config.variables import Expanded, read_scalar
from truthgpt_serve.errors import Fault

LONG = 6
"""From this length on a value is found within words and in other case; a shorter one alone."""
_HEAD = 12
"""How much of a longer value is recognized where a message cuts it off."""
_CUT = re.compile(r"$|['\"…]|\.\.\.")
_REFERENCE = re.compile(r"\$\{\w+\}")
_AROUND = re.compile(rf"({_REFERENCE.pattern})")
_PART = re.compile(r"[^\s'\"()]{4,}")


@dataclass(frozen=True, slots=True)
class HiddenValues:
    """The values of a configuration's variables, with how they were written.

    Attributes:
        written: What stands for each text that a message may show a value as.
        at: The values at each dotted place, with what stands for them.
    """

    written: dict[str, str] = field(default_factory=dict)
    at: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, text: str, place: str = "") -> None:
        """Takes note of a text with variables in it; of one without, nothing.

        Args:
            text: The text after `expand`.
            place: The dotted path of its key.
        """
        if not isinstance(text, Expanded):
            return
        whole = [(str(text), text.written)] if text.values else []
        for value, written in (*whole, *text.values.items()):
            for shown in _forms(value):
                self.written.setdefault(shown, written)
        self.at.setdefault(place, []).extend(text.values.items())

    def hide(self, text: str) -> str:
        """Returns a message that shows variables by their names."""
        return _hide(text, self.written)

    def hide_long(self, text: str) -> str:
        """Returns a text without values that are long enough to be told from others anywhere."""
        return _hide(text, {v: shown for v, shown in self.written.items() if len(v) >= LONG})

    def written_at(self, place: str, value: object) -> str | None:
        """Returns how the value at a dotted place was written, or None where no variable gave it.

        Args:
            place: The dotted path of its key.
            value: What it is now: as it was read, or with its local path made absolute.
        """
        found = self.at.get(place)
        if not found:
            return None
        written = {form: shown for text, shown in found for form in _forms(text)}
        hidden = _hide(value, written) if isinstance(value, str) else found[0][1]
        return found[0][1] if hidden == value else hidden

    def hide_fault(self, fault: Fault) -> Fault:
        """Returns a fault that shows variables by their names."""
        if not self.written:
            return fault
        # What to write instead is mostly of the program's own making.
        long = {value: shown for value, shown in self.written.items() if len(value) >= LONG}
        message, fix = _hide(fault.message, self.written), _hide(fault.fix, long)
        # A fault may also show a part of the value that it is about, such as the path of a URL.
        for value, written in self.at.get(fault.place.rpartition(": ")[2], ()):
            message, fix = (_hide_parts(each, value, written) for each in (message, fix))
        return replace(fault, message=message, fix=fix)

    def hide_faults(self, faults: Iterable[Fault]) -> list[Fault]:
        """Returns faults that show variables by their names."""
        return [self.hide_fault(fault) for fault in faults]


def _forms(value: str) -> Iterator[str]:
    """Yields each text that a message may show a value as."""
    texts = [value, str(os.path.expanduser(value))]
    if "/" in value:
        texts += [os.path.normpath(text) for text in texts]
    read = read_scalar(value)
    if not isinstance(read, str):
        texts += [str(read), str(read).lower(), f"{float(read):.12g}", str(float(read))]
    for text in texts:
        if text and text not in ("/", "."):
            yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1])


def _hide(text: str, written: Mapping[str, str]) -> str:
    """Replaces each value once, so that what stands for one is not taken for another."""
    pieces = [(piece, _REFERENCE.fullmatch(piece) is not None) for piece in _AROUND.split(text)]
    for value in sorted(written, key=len, reverse=True):
        pieces = [
            part
            for piece, is_done in pieces
            for part in ([(piece, True)] if is_done else _split(piece, value, written[value]))
        ]
    return "".join(piece for piece, _ in pieces)


def _split(text: str, value: str, written: str) -> Iterator[tuple[str, bool]]:
    start = 0
    for begin, end in _find(text, value):
        yield text[start:begin], False
        yield written, True
        start = end
    yield text[start:], False


def _find(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Yields where a text shows a value, also cut off at its end."""
    if len(value) < LONG or _is_number(value):
        edge = r"\w" if len(value) > 1 or value.isdigit() else r"[^'\"]"
        pattern = rf"(?<!{edge})(?<!\d\.){re.escape(value)}(?!{edge})(?!\.\d)"
        yield from (found.span() for found in re.finditer(pattern, text))
        return
    position = 0
    for found in re.finditer(re.escape(value[:_HEAD]), text, re.IGNORECASE):
        if found.start() < position:
            continue
        end = found.end()
        length = end - found.start()
        while length < len(value) and text[end : end + 1].lower() == value[length].lower():
            end, length = end + 1, length + 1
        if length == len(value) or _CUT.match(text, end):
            yield found.start(), end
            position = end


def _hide_parts(text: str, value: str, written: str) -> str:
    def stand_in(found: re.Match[str]) -> str:
        part = found[0].strip(".,:;")
        is_part = len(part) >= 4 and not part.isalpha() and part in value
        return found[0].replace(part, written) if is_part else found[0]

    return _PART.sub(stand_in, text)


def _is_number(text: str) -> bool:
    return not isinstance(read_scalar(text), str)
