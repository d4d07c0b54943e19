"""Which models a key may use, under which names."""

from __future__ import annotations

import pytest

from truthgpt_serve.access.identity import ANONYMOUS, SCOPE_KEY, Identity, identity_of


@pytest.mark.parametrize(
    ("models", "name", "model", "may"),
    [
        (None, "story", "story", True),
        (("story",), "story", "story", True),
        (("story",), "moral", "story", True),  # an adapter of a model that it may use
        (("moral",), "moral", "story", True),
        (("moral",), "story", "story", False),
        (("st*",), "story", "story", True),
        (("*",), "x", "y", True),
        (("org/*",), "org/a:b", "a", True),
        (("Story",), "story", "story", False),
        (("stor",), "story", "story", False),
    ],
)
def test_may_use(models: tuple[str, ...] | None, name: str, model: str, may: bool) -> None:
    assert Identity("k", models).may_use(name, model) is may
    assert Identity("k", models).may_use_any([name], model) is may


def test_of_a_scope() -> None:
    assert identity_of({}) is None
    assert identity_of({SCOPE_KEY: ANONYMOUS}) is ANONYMOUS
    assert not ANONYMOUS.may_use("a", "a")
    assert not ANONYMOUS.may_use_any(["a"], "a")
