"""The address that clients use, from the headers of proxies."""

from __future__ import annotations

import pytest

from truthgpt_serve.server.images.public_url import public_url


@pytest.mark.parametrize(
    ("headers", "root", "expected"),
    [
        ({"host": "a:8000"}, "", "http://a:8000/f"),
        ({"host": "a"}, "/models/x", "http://a/models/x/f"),
        ({"host": "a", "x-forwarded-host": "b"}, "/models/x", "http://b/models/x/f"),
        (
            {"host": "a", "x-forwarded-host": "b", "x-forwarded-prefix": "/"},
            "/models/x",
            "http://b/f",
        ),
        (
            {
                "host": "a",
                "x-forwarded-host": "b.org, c",
                "x-forwarded-proto": "HTTPS, http",
                "x-forwarded-prefix": "/ai/",
            },
            "",
            "https://b.org/ai/f",
        ),
        ({"host": "[::1]:80"}, "", "http://[::1]:80/f"),
        ({"host": "a/b?c"}, "", "http://127.0.0.1:7/f"),
        ({"host": "a", "x-forwarded-host": "b<script>"}, "", "http://a/f"),
        ({"host": "a", "x-forwarded-proto": "javascript"}, "", "http://a/f"),
        ({"host": "a", "x-forwarded-prefix": "//evil.org/x"}, "/m", "http://a/m/f"),
        ({"host": "a", "x-forwarded-prefix": ""}, "/m", "http://a/f"),
        ({}, "", "http://127.0.0.1:7/f"),
    ],
)
def test_public_addresses(headers: dict[str, str], root: str, expected: str) -> None:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"headers": lines, "scheme": "http", "root_path": root, "server": ("127.0.0.1", 7)}
    assert public_url(scope, "/f") == expected
