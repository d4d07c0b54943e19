"""What programs, models and servers say must not move a terminal's cursor or rename its window."""

from __future__ import annotations

import pytest

from truthgpt_serve.cli._service.failures import one_line
from truthgpt_serve.cli._service.session import clean_line
from truthgpt_serve.cluster.service.screen import _clean
from truthgpt_serve.terminal import clean

CASES = [
    ("plain \tüñ 漢 🧑\u200d🔬\n", "plain \tüñ 漢 🧑\u200d🔬\n"),
    ("\x1b[31mred\x1b[0m", "red"),
    ("\x1b[2J\x1b[1;1Hx\x1b[?25l\x1b[38:2::1:2:3my", "xy"),
    ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b]52;c;AAAA\x07c", "abc"),
    ("\x1b]0;without an end", "]0;without an end"),
    ("a\x9b31mb\x9d0;title\x9cc\x85d\x80e\x9ff", "abcdef"),
    ("a\x00b\x07c\x08d\re\x0bf\x7fg\x1bh", "abcdefgh"),
    ("user\u202egnp.exe\u202c \u2066x\u2069 \u202a\u202b\u202d\u2067\u2068", "usergnp.exe x "),
    ("a\ud800b", "a\ufffdb"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_what_a_terminal_would_obey_is_taken_out(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize("text", ["\x9b2Jx", "\x85x", "\u202ex", "\u2066x", "\x1b]0;t\x07x"])
def test_all_that_the_programs_show_goes_through_it(text: str) -> None:
    assert clean_line(text) == one_line(text) == _clean(text) == "x"


def test_long_texts_take_no_time() -> None:
    assert clean("\x1b]" * 500_000) == "]" * 500_000
    assert clean("\x1b[" * 500_000) == "[" * 500_000
    assert clean("\x1b[" + "0;" * 500_000) == "[" + "0;" * 500_000
