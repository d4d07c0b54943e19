"""Adapters that fail in a started engine, with vLLM's own list of models and an engine in place."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler

from deployments.vllm.adapters.loading import Adapters
from deployments.vllm.application.errors import ReadableErrors
from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama


class Engine:
    """Takes every adapter but `odd`."""

    model_config = types.SimpleNamespace(max_model_len=64, model="tiny")
    renderer = None
    input_processor = None

    async def add_lora(self, request: Any) -> bool:
        if request.lora_name == "odd":
            raise RuntimeError("no such module")
        return True


@pytest.fixture
def cfg(tmp_path: Path) -> dict[str, Any]:
    make_tiny_llama(tmp_path / "llama")
    for name in ("good", "dora", "odd"):
        make_tiny_adapter(tmp_path / name)
    config = tmp_path / "dora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    adapters = [{"name": name, "path": str(tmp_path / name)} for name in ("dora", "odd", "good")]
    adapters.append({"name": "gone", "path": str(tmp_path / "gone")})
    return {
        "model": {"name_or_path": str(tmp_path / "llama")},
        "serving": {"engine": {}, "adapters": adapters},
    }


async def test_failed_adapters_are_refused_with_the_reason(cfg: dict[str, Any]) -> None:
    adapters = Adapters(cfg)
    assert [one["name"] for one in adapters.usable] == ["odd", "good"]
    assert set(adapters.failed) == {"dora", "gone"}
    models = OpenAIServingModels(Engine(), [BaseModelPath(name="tiny", model_path="tiny")])
    await adapters.load(models)
    assert adapters.failed["odd"] == "no such module"
    assert [one["name"] for one in adapters.usable] == ["good"]
    assert list(models.lora_requests) == ["good"]
    listed = await models.show_available_models()
    assert [card.id for card in listed.data] == ["tiny", "good"]

    app = FastAPI()
    app.add_api_route("/v1/completions", lambda name: models.is_base_model(name), methods=["GET"])
    app.state.args = types.SimpleNamespace(log_error_stack=False)
    init_exception_handler(app)
    transport = httpx.ASGITransport(ReadableErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        # vLLM keeps the machine's paths from clients; the log has them.
        reasons = {"dora": "use_dora is set", "odd": "no such module", "gone": "cannot be fetched"}
        for name, reason in reasons.items():
            answer = await client.get("/v1/completions", params={"name": name})
            assert answer.status_code == 503
            message = answer.json()["error"]["message"]
            assert reason in message
            assert "its model serves without it" in message
        for name in ("tiny", "good", "other"):
            answer = await client.get("/v1/completions", params={"name": name})
            assert answer.json() == (name == "tiny")
