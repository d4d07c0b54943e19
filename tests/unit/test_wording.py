"""Words for names that do not exist."""

from __future__ import annotations

import numpy as np

from truthgpt_serve.wording import nearest, shown, suggest


def test_suggestions_keep_the_known_spelling() -> None:
    assert nearest("EULER", ["euler", "heun"]) == "euler"
    assert nearest("eulerdiscretescheduler", ["EulerDiscreteScheduler"]) == "EulerDiscreteScheduler"
    assert nearest(7, ["x"]) is None
    assert nearest("max_step", ["max_steps"], 0.99) is None


def test_a_fix_is_the_nearest_name_or_all() -> None:
    assert suggest("EULER", ["euler"]) == "did you mean 'euler'?"
    assert suggest("x", ["b", "a"]) == "known: b, a"
    assert suggest("x", {"b", "a"}) == "known: a, b"
    assert suggest("x", []) == "there are none"
    assert suggest("x", ["a"], "see the manual") == "see the manual"


def test_an_array_is_not_printed() -> None:
    assert shown(np.zeros((2, 3))) == shown(np.zeros((0, 3))) == "an array"
    assert shown(np.float32(0.5)) == "0.5"
