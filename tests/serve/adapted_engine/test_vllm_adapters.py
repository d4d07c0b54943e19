"""Adapters that cannot be served leave the base model and the other adapters alone."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.serve.adapted_engine.conftest import BAD, GOOD
from tests.serve.vllm_process import Server

pytestmark = pytest.mark.timeout(600)

FAILED = {
    "dora": "use_dora is set: vLLM does not serve DoRA",
    "cut": "was cut off",
    "odd": "odd_experts",
    "away": "cannot be fetched",
}
"""By the adapter's name, what its reason says."""


def complete(server: Server, model: str, **more: Any) -> Any:
    return server.client.completions.create(
        model=model, prompt="Hello world", max_tokens=16, temperature=0, **more
    )


def test_the_base_model_and_good_adapters_answer(server: Server) -> None:
    base, good = (complete(server, name).choices[0].text for name in ("tiny", "good"))
    assert base
    assert good
    assert base != good
    listed = {model.id for model in server.client.models.list().data}
    assert listed == {"tiny", *GOOD}
    assert FAILED.keys() == {*BAD}


@pytest.mark.parametrize("name", list(FAILED))
def test_a_failed_adapter_answers_with_the_reason(name: str, server: Server) -> None:
    chat = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
    for path, body in (
        ("/v1/completions", {"model": name, "prompt": "Hi", "max_tokens": 2}),
        ("/v1/completions", {"model": name, "prompt": "Hi", "max_tokens": 2, "stream": True}),
        ("/v1/chat/completions", chat),
        ("/v1/infer", {"model": name, "inputs": {"text": "Hi"}}),
    ):
        answer = httpx.post(server.url + path, json=body, timeout=60)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 503, (path, answer.text)
        assert FAILED[name] in message
        assert "its model serves without it" in message
    with pytest.raises(openai.InternalServerError, match=FAILED[name]):
        complete(server, name)


def test_cards_and_the_log_name_the_failed_ones(server: Server) -> None:
    card = httpx.get(f"{server.url}/v1/models/tiny", timeout=60).json()
    assert set(card["failed_adapters"]) == set(FAILED)
    for name, reason in FAILED.items():
        assert reason in card["failed_adapters"][name]
        assert httpx.get(f"{server.url}/v1/models/{name}", timeout=60).status_code == 503
    log = server.log.read_text(errors="replace")
    assert all(f"the adapter {name!r} is not served" in log for name in FAILED)


def test_an_unknown_name_is_still_unknown(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        complete(server, "nobody")
