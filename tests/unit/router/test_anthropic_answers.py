"""Models and errors in the form of the client that asks, with the clients of both APIs."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from tests.support.sample_models import Upper, spec_of
from tests.support.servers import serve_asgi
from truthgpt_serve.router.anthropic_answers import AnthropicAnswers
from truthgpt_serve.server import create_app

HEADERS = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = create_app(spec_of(Upper), {"serving": {"aliases": ["org/other"]}}, name="sample")
    with serve_asgi(AnthropicAnswers(app), lifespan="on") as url:
        yield url


def test_anthropics_client_lists_models(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client:
        page = client.models.list()
        assert [model.id for model in page] == ["sample", "org/other"]
        assert (page.has_more, page.first_id, page.last_id) == (False, "sample", "org/other")
        model = client.models.retrieve("sample")
        assert (model.type, model.id, model.display_name) == ("model", "sample", "sample")
        assert model.created_at.year >= 2024
        with pytest.raises(anthropic.NotFoundError) as raised:
            client.models.retrieve("nosuch")
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"]["type"] == "not_found_error"


def test_openais_client_gets_what_it_got(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        assert [model.object for model in client.models.list()] == ["model", "model"]
        with pytest.raises(openai.NotFoundError, match="nosuch"):
            client.models.retrieve("nosuch")


def test_errors_of_other_routes(url: str) -> None:
    for path, method in (("/v1/files", "GET"), ("/v1/chat/completions", "POST")):
        answer = httpx.request(method, url + path, headers=HEADERS)
        assert answer.status_code in (400, 404)
        assert answer.json().keys() == {"type", "error"}
        assert "type" not in httpx.request(method, url + path).json()
    v2 = httpx.get(f"{url}/v2", headers=HEADERS)
    assert isinstance(v2.json()["error"], str)


def test_what_is_neither_passes(url: str) -> None:
    for path in ("/health", "/v1/models"):
        assert httpx.head(url + path, headers=HEADERS).status_code == 200
    assert httpx.get(f"{url}/health", headers=HEADERS).json() == {"status": "ok"}
    body = {"model": "sample", "prompt": "a", "stream": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, headers=HEADERS)
    assert answer.text.endswith("data: [DONE]\n\n")
