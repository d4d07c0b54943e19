"""Settings of the family echo."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deployments.echo.config import FAMILY, EchoSettings
from deployments.echo.deployment import EchoModel
from truthgpt_serve import MODEL_REGISTRY


def test_it_is_found_by_its_entry_point() -> None:
    assert MODEL_REGISTRY.find("echo") == FAMILY
    assert FAMILY.load_class() is EchoModel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_second": 0}, "greater than 0"),
        ({"token_interval_s": -1}, "greater than or equal to 0"),
        ({"tokens_per_second": 9, "token_interval_s": 1}, "not both"),
        ({"num_tokens": 0}, "greater than or equal to 1"),
        ({"speed": 3}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EchoSettings.model_validate(settings)
