"""A value that may be a text or a list has one fault, at its own place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configs import faults


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ('""', "m.yaml:2: data.dataset: must not be empty"),
        ("[]", "m.yaml:2: data.dataset: must not be empty"),
        ('[""]', "m.yaml:2: data.dataset[0]: must not be empty"),
        ("5", "m.yaml:2: data.dataset: must be a string, not 5 (put it in quotes)"),
        ("[a, 5]", "m.yaml:2: data.dataset[1]: must be a string, not 5 (put it in quotes)"),
        ("{a: 1}", "m.yaml:2: data.dataset: must be a string, not a mapping"),
    ],
)
def test_a_text_or_a_list(tmp_path: Path, value: str, fault: str) -> None:
    text = f"model: {{family: echo}}\ndata: {{dataset: {value}}}\n"
    assert faults(tmp_path, text) == [fault]


def test_items_that_are_a_text_or_a_list(tmp_path: Path) -> None:
    prompts = '["", [], [{role: 3, content: a}], {a: 1}]'
    text = f"model: {{family: echo}}\ntraining: {{samples: {{prompts: {prompts}}}}}\n"
    place = "m.yaml:2: training.samples.prompts"
    assert faults(tmp_path, text) == [
        f"{place}[0]: must not be empty",
        f"{place}[1]: must not be empty",
        f"{place}[2][0].role: must be one of system, user, assistant, not 3",
        f"{place}[3]: must be a string, not a mapping",
    ]
