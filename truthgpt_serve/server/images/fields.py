"""The kinds of fields that an image request has: what each may be, and how a form writes it.

Knows no field by name. A kind refuses a value by its place, what is allowed and what was found.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import as_whole, bad_field, shown

_WHOLE = re.compile(r"[-+]?\d{1,30}")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
MAX_NAMES = 32
MAX_NAME_CHARS = 128
MAX_WEIGHT = 100.0


class Kind(Protocol):
    """One kind of field."""

    def check(self, name: str, value: Any) -> Any:
        """Returns the value as requests hold it. Raises RequestError."""

    def from_text(self, text: str) -> Any:
        """Returns what a form's text stands for; what stands for nothing stays text."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def check(self, name: str, value: Any) -> int:
        """See `Kind.check`."""
        whole = as_whole(value)
        if whole is None or not self.low <= whole <= self.high:
            raise bad_field(
                name, f"must be a whole number from {self.low} to {self.high}, not {shown(value)}"
            )
        return whole

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return int(text) if _WHOLE.fullmatch(text) else text


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`, or above `low` where `open_low`."""

    low: float
    high: float
    open_low: bool = False

    def check(self, name: str, value: Any) -> float:
        """See `Kind.check`."""
        right = isinstance(value, int | float) and not isinstance(value, bool)
        # A value that is no number compares false with everything.
        if right and self.low <= value <= self.high and not (self.open_low and value == self.low):
            return float(value)
        low = f"above {self.low:g} and at most" if self.open_low else f"from {self.low:g} to"
        raise bad_field(name, f"must be a number {low} {self.high:g}, not {shown(value)}")

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return float(text) if _NUMBER.fullmatch(text) else text


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most `max_chars` characters."""

    max_chars: int
    may_be_empty: bool = False

    def check(self, name: str, value: Any) -> str:
        """See `Kind.check`."""
        if not isinstance(value, str):
            raise bad_field(name, f"must be a string, not {shown(value)}")
        if not value and not self.may_be_empty:
            raise bad_field(name, "must not be empty")
        if len(value) > self.max_chars:
            raise bad_field(
                name, f"has {len(value)} characters; at most {self.max_chars} are allowed"
            )
        return value

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return text


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def check(self, name: str, value: Any) -> str:
        """See `Kind.check`."""
        if value not in self.words or not isinstance(value, str):
            raise bad_field(name, f"must be one of {', '.join(self.words)}, not {shown(value)}")
        return value

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return text


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, name: str, value: Any) -> bool:
        """See `Kind.check`."""
        if not isinstance(value, bool):
            raise bad_field(name, f"must be true or false, not {shown(value)}")
        return value

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return _BOOLEANS.get(text.lower(), text)


@dataclass(frozen=True, slots=True)
class Size:
    """`WIDTHxHEIGHT` in pixels, or `auto`, which is None."""

    max_pixels: int

    def check(self, name: str, value: Any) -> tuple[int, int] | None:
        """See `Kind.check`."""
        if value == "auto":
            return None
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise bad_field(
                name, f"must be WIDTHxHEIGHT in pixels, such as 1024x1024, or auto, not "
                f"{shown(value)}"
            )  # fmt: skip
        width, height = int(match[1]), int(match[2])
        if width * height > self.max_pixels:
            raise bad_field(
                name,
                f"is {value}, {width * height} pixels; this model makes at most {self.max_pixels}",
            )
        return width, height

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`."""
        return text


@dataclass(frozen=True, slots=True)
class Adapters:
    """Adapters with their weights, `{name: weight}`; a list of names means weight 1 each.

    Attributes:
        known: The names that exist, or None when only the model's class knows.
    """

    known: Collection[str] | None = None

    def check(self, name: str, value: Any) -> dict[str, float]:
        """See `Kind.check`."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, str):
                    raise bad_field(f"{name}[{index}]", f"must be a string, not {shown(item)}")
            value = dict.fromkeys(value, 1.0)
        if not isinstance(value, Mapping):
            raise bad_field(
                name, f"must be an object {{name: weight}} or a list of names, not {shown(value)}"
            )
        if len(value) > MAX_NAMES:
            raise bad_field(name, f"names {len(value)} adapters; at most {MAX_NAMES} are allowed")
        number = Number(-MAX_WEIGHT, MAX_WEIGHT)
        weights = {}
        for key, weight in value.items():
            self._check_name(name, str(key))
            weights[str(key)] = number.check(f"{name}.{str(key)[:MAX_NAME_CHARS]}", weight)
        return weights

    def _check_name(self, place: str, name: str) -> None:
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise bad_field(place, f"has a name of {len(name)} characters, not 1 to 128")
        if self.known is not None and name not in self.known:
            exist = ", ".join(sorted(self.known)) or "none"
            raise RequestError(
                f"there is no adapter {name!r}; those of this model: {exist}", param=place
            )

    def from_text(self, text: str) -> Any:
        """See `Kind.from_text`: JSON, or one name."""
        if text[:1] not in ("{", "["):
            return [text]
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text

    @staticmethod
    def weight_from_text(text: str) -> Any:
        """Returns the number of a form's field `adapters[name]`."""
        value = float(text) if _NUMBER.fullmatch(text) else text
        return text if isinstance(value, float) and not math.isfinite(value) else value
