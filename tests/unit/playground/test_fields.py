"""Numbers that users type into the fields of the pages."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.playground import fields
from truthgpt_serve.playground.client import ServiceFault


@pytest.mark.parametrize(
    ("value", "number"),
    [("", None), (None, None), (" 3 ", 3), ("0.5", 0.5), ("-1", -1), (".5", 0.5)],
)
def test_numbers(value: Any, number: float | None) -> None:
    assert fields.number(value, "Seed") == number
    assert type(fields.number(value, "Seed")) is type(number)


@pytest.mark.parametrize("value", ["x", "1e5", "nan", "inf", "1_0", "²", "9" * 40, "1.", "0x1"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ServiceFault, match=r"^Seed must be a number such as 0\.7"):
        fields.number(value, "Seed")
    with pytest.raises(ServiceFault, match=r"^Seed must be a whole number, not 0\.5"):
        fields.whole("0.5", "Seed")
