"""Adapters that cannot be served leave the base model and the other adapters alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from safetensors.numpy import load_file, save_file

from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from tests.serve.test_vllm_engine import Server, make_config, serve

pytestmark = pytest.mark.timeout(600)

FAILED = {
    "dora": "use_dora is set: vLLM does not serve DoRA",
    "cut": "was cut off",
    "odd": "odd_experts",
    "away": "cannot be fetched",
}
"""By the adapter's name, what its reason says: of `odd` vLLM alone finds it, when it loads."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_llama(folder / "llama")
    for name in ("good", "dora", "cut", "odd"):
        make_tiny_adapter(folder / name)
    config = folder / "dora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    weights = folder / "odd" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k.replace("q_proj", "odd_experts"): v for k, v in tensors.items()}, weights)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    adapters = [{"name": name, "path": str(folder / name)} for name in ("dora", "good", "cut")]
    adapters.append({"name": "odd", "path": str(folder / "odd")})
    adapters.append({"name": "away", "path": "nobody/no-such-adapter"})
    config = make_config(folder, serving={"adapters": adapters})
    with serve(config, tmp_path_factory.mktemp("log") / "log", start_timeout_s=400) as found:
        yield found


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
    assert listed == {"tiny", "good"}


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
