from __future__ import annotations

from truthgpt_serve.cli.schema import KINDS
from truthgpt_serve.validate.reference import SCHEMAS


def test_the_kinds_of_schemas_are_those_that_exist() -> None:
    assert list(KINDS) == list(SCHEMAS)
