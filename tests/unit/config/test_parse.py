"""Numbers and words of YAML that read as something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.configs import faults, read


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 8), ("-010", -8), ("0_17", 15), ("1:30", 90), ("12:30:45", 45045), ("1:30.5", 90.5)],
)
def test_numbers_in_unusual_notation(tmp_path: Path, text: str, value: float) -> None:
    shown = f"m.yaml:2: seed: {text} is the number {value} in YAML 1.1"
    assert faults(tmp_path, f"model: {{family: echo}}\nseed: {text}\n") == [
        f"{shown} (write '{text}' if it is a text, or {value} if it is that number)"
    ]
    read(tmp_path, f"model: {{family: echo}}\nrun_name: '{text}'\n")


@pytest.mark.parametrize("text", ["0", "00", "10", "1_000", "0x1f", "0b11", "+7"])
def test_numbers_that_are_meant_so(tmp_path: Path, text: str) -> None:
    read(tmp_path, f"model: {{family: echo}}\nseed: {text}\n")


@pytest.mark.parametrize(
    ("word", "shown"), [("no", "false"), ("On", "true"), ("yes", "true"), ("1e5", "100000.0")]
)
def test_words_where_a_text_is_expected(tmp_path: Path, word: str, shown: str) -> None:
    assert faults(tmp_path, f"run_name: {word}\nmodel: {{family: echo}}\n") == [
        f"m.yaml:1: run_name: must be a string, and YAML reads {word} as {shown} (write '{word}')"
    ]


def test_words_for_true_and_false(tmp_path: Path) -> None:
    config = read(tmp_path, "model: {family: echo}\nmodel_optim: {compile: yes}\n")
    assert config.model_optim.compile is True
