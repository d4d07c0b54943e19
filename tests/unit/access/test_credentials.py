"""Where a request carries its key, and in which forms it does not."""

from __future__ import annotations

import base64

import pytest

from truthgpt_serve.access.credentials import (
    create_key,
    digest,
    read_credential,
)
from truthgpt_serve.errors import AuthenticationError
from truthgpt_serve.wording import KEY_PREFIX

AUTH, X = b"authorization", b"x-api-key"


def test_keys_are_random() -> None:
    keys = {create_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert len(base64.urlsafe_b64decode(key.removeprefix(KEY_PREFIX) + "=")) == 32
    assert len(digest(b"k")) == 32


@pytest.mark.parametrize(
    "headers",
    [
        [(AUTH, b"Bearer k")],
        [(AUTH, b"bearer k")],
        [(AUTH, b"BEARER   k ")],
        [(X, b"k")],
        [(X, b" k")],
        [(b"host", b"h"), (AUTH, b"Bearer k"), (X, b"k")],
        [(AUTH, b"Bearer k"), (X, b"")],
        [(X, b" "), (AUTH, b"Bearer k")],
        [(AUTH, b""), (X, b"k")],
        [(AUTH, b"Bearer "), (X, b"k")],
        [(AUTH, b""), (AUTH, b"Bearer k")],
    ],
)
def test_forms(headers: list[tuple[bytes, bytes]]) -> None:
    assert read_credential(headers) == b"k"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "is missing"),
        ([(AUTH, b"")], "is missing"),
        ([(AUTH, b"bearer"), (X, b" ")], "is missing"),
        ([(AUTH, b"k")], "does not carry a Bearer key"),
        ([(AUTH, b"Basic azpr")], "does not carry a Bearer key"),
        ([(AUTH, b"Bearer")], "is missing"),
        ([(AUTH, b"Bearer ")], "is missing"),
        ([(AUTH, b"Bearerk")], "does not carry a Bearer key"),
        ([(AUTH, b"Bearer\tk")], "does not carry a Bearer key"),
        ([(X, b"")], "is missing"),
        ([(AUTH, b"Bearer k"), (AUTH, b"Bearer k")], "several headers `Authorization`"),
        ([(X, b"k"), (X, b"k")], "several headers `x-api-key`"),
        ([(AUTH, b"Bearer k"), (X, b"other")], "two different keys"),
    ],
)
def test_other_forms_are_refused(headers: list[tuple[bytes, bytes]], message: str) -> None:
    with pytest.raises(AuthenticationError, match=message):
        read_credential(headers)
