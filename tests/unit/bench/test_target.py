from __future__ import annotations

import pytest

from tests.support.bench_server import KEY, BenchServer, serve_asgi
from truthgpt_serve.bench.session import find_model
from truthgpt_serve.bench.target import BenchError, Target, TargetError, normalize_url


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("http://a:1/v1/", "http://a:1"), ("https://a/x/v1", "https://a/x"), ("http://a", "http://a")],
)
def test_addresses_are_taken_with_and_without_v1(given: str, wanted: str) -> None:
    assert normalize_url(given) == wanted


@pytest.mark.parametrize("url", ["a:1", "ftp://a", "http://", "http://u:p@a", "http://a:x", "//a"])
def test_bad_addresses_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(BenchError) as caught:
        normalize_url(url)
    assert ":p@" not in caught.value.message


async def test_the_first_model_that_answers_is_taken() -> None:
    with serve_asgi(BenchServer()) as url:
        found = await find_model(Target(url), "chat", timeout_s=20, fields={})
        assert found.model == "words"
        with pytest.raises(TargetError, match="busy: http 429") as caught:
            await find_model(Target(url, "busy", KEY), "chat", timeout_s=20, fields={})
    assert KEY not in caught.value.message
