"""The similarity of texts, as the page shows it."""

from __future__ import annotations

import pytest

from truthgpt_serve.playground.pages.similarity import cosines, split_lines, to_table

HOSTILE = "<script>alert(1)</script>\"'"


def test_cosines_of_known_vectors() -> None:
    found = cosines([[1, 0, 0], [2, 0, 0], [0, 3, 0], [1, 1, 0], [0, 0, 0]])
    assert found[0] == pytest.approx([1, 1, 0, 0.5**0.5, 0])
    assert found[3] == pytest.approx([0.5**0.5, 0.5**0.5, 0.5**0.5, 1, 0])
    assert cosines([[-1.0], [1.0]])[0] == pytest.approx([1, -1])
    with pytest.raises(ValueError, match="vectors of 1 and 2"):
        cosines([[1], [1, 2]])


def test_the_table_shows_each_pair_and_escapes_the_lines() -> None:
    lines = split_lines(f"one\n\n  {HOSTILE} \n")
    assert lines == ["one", HOSTILE]
    table = to_table(lines, cosines([[1, 0], [1, 1]]))
    assert table.count("<td") == 4
    assert table.count(">0.71<") == 2
    assert "<script" not in table
