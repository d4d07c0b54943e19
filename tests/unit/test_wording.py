"""Words for names that do not exist, and keys that no words show."""

from __future__ import annotations

import numpy as np

from truthgpt_serve.access.credentials import create_key
from truthgpt_serve.wording import HIDDEN, KEY_PREFIX, hide_keys, nearest, shown, suggest


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


def test_keys_in_a_text_are_hidden() -> None:
    key = create_key()
    assert hide_keys(f"/a/{key}/b?{key}&c") == f"/a/{HIDDEN}/b?{HIDDEN}&c"
    assert hide_keys("/v1/models/sk-" + "a1" * 16) == f"/v1/models/{HIDDEN}"
    for path in ("/v1/models/story", f"/v1/models/{KEY_PREFIX}story", "/v1/task-" + "a" * 30):
        assert hide_keys(path) == path
