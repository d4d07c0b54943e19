"""The limits of bodies: what a setting may be, and how a refusal names it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from truthgpt_serve.body_limits import MAX_BODY_BYTES, body_too_large
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.config.images import ImagesSection
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.config.serving import ServingSection


def test_a_refusal_names_the_limit_and_what_sets_it() -> None:
    error = body_too_large(1000, "`serving.max_body_bytes`")
    assert (error.status, error.code) == (413, "request_too_large")
    assert error.message == (
        "the request body is larger than 1000 bytes, the limit that `serving.max_body_bytes` sets"
    )


def test_a_model_takes_what_the_router_may_let_through() -> None:
    assert ServingSection().max_body_bytes == MAX_BODY_BYTES
    assert RouterConfig().max_body_bytes <= MAX_BODY_BYTES
    assert ImagesSection().max_upload_bytes <= RouterConfig().max_body_bytes


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (RouterConfig, "max_body_bytes"),
        (ServingSection, "max_body_bytes"),
        (PlaygroundConfig, "max_upload_bytes"),
    ],
)
def test_no_setting_is_above_the_ceiling(section: type, key: str) -> None:
    assert getattr(section(**{key: MAX_BODY_BYTES}), key) == MAX_BODY_BYTES
    with pytest.raises(ValidationError):
        section(**{key: MAX_BODY_BYTES + 1})
