from __future__ import annotations

import pytest

from truthgpt_serve.config.load import load_playground_args
from truthgpt_serve.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://models.example.com:8000", "http://models.example.com:8000"),
        ("https://models.example.com/v1", "https://models.example.com"),
        ("http://models.example.com/", "http://models.example.com"),
    ],
)
def test_an_address_may_end_with_v1(given: str, kept: str) -> None:
    assert load_playground_args({"base_url": given}, place="ui").base_url == kept


@pytest.mark.parametrize("given", ["models.example.com", "ftp://models.example.com", "http://", ""])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"base_url: .* is not the address of a service"):
        load_playground_args({"base_url": given}, place="ui")


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="is not the address of a service") as caught:
        load_playground_args({"base_url": "http://user:hunter2@models example"}, place="ui")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("given", [0, 29.9])
def test_a_process_that_would_end_while_a_page_is_open_is_refused(given: float) -> None:
    with pytest.raises(ConfigError, match=f"ui: keep_s: must be at least 30, not {given}"):
        load_playground_args({"keep_s": given}, place="ui")


@pytest.mark.parametrize("given", [30, None])
def test_how_long_the_process_stays(given: float | None) -> None:
    assert load_playground_args({"keep_s": given}, place="ui").keep_s == given
