"""Reads the fields of a request's inputs; knows types and ranges, not what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from PIL import Image

from deployments.hf_diffusers.choices import suggest
from truthgpt_serve.errors import RequestError


class Fields:
    """The inputs of one request; a value of None counts as not given.

    Each method returns None, or something empty, for a field that is not given, and raises
    `RequestError` for one that is wrong.
    """

    def __init__(self, inputs: Mapping[str, Any]) -> None:
        self._given = {key: value for key, value in inputs.items() if value is not None}
        self._read: set[str] = set()

    def _take(self, name: str) -> Any:
        self._read.add(name)
        return self._given.get(name)

    def text(self, name: str, *, empty: bool = False) -> str | None:
        """Returns a text; an empty one counts as not given unless `empty`."""
        value = self._take(name)
        if value is not None and not isinstance(value, str):
            raise _wrong(name, "a string", value)
        return value if value or empty else None

    def integer(self, name: str, low: int, high: int | None) -> int | None:
        """Returns a whole number between the limits."""
        value = self._take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(name, "a whole number", value)
        if value < low:
            raise RequestError(f"`{name}` is {value}: it must be at least {low}", param=name)
        if high is not None and value > high:
            raise RequestError(f"`{name}` is {value}: it must be at most {high}", param=name)
        return value

    def number(self, name: str, low: float, high: float, *, above: bool = False) -> float | None:
        """Returns a number between the limits, the lower one itself excluded by `above`."""
        value = self._take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(name, "a number", value)
        if not math.isfinite(value) or not low <= value <= high or (above and value == low):
            least = f"more than {low:g}" if above else f"at least {low:g}"
            message = f"`{name}` is {value:g}: it must be {least} and at most {high:g}"
            raise RequestError(message, param=name)
        return float(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """Returns a mapping of names to values."""
        value = self._take(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _wrong(name, "an object of names and weights", value)
        return dict(value)

    def images(self, name: str) -> list[Image.Image]:
        """Returns one image or several as a list."""
        value = self._take(name)
        if value is None:
            return []
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        for image in values:
            if not isinstance(image, Image.Image):
                raise _wrong(name, "an image", image)
        return values

    def refuse_rest(self) -> None:
        """Refuses what no method has asked for: a client's field is never ignored."""
        for name in self._given:
            if name not in self._read:
                message = f"there is no input `{name}` ({suggest(name, self._read)})"
                raise RequestError(message, param=name)


def _wrong(name: str, wanted: str, value: Any) -> RequestError:
    return RequestError(f"`{name}` must be {wanted}, not {type(value).__name__}", param=name)
