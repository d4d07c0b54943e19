"""Texts from a graph without a cache, whose next token is known, at the class and over HTTP."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
from onnx import TensorProto, helper
from transformers import AutoTokenizer

from deployments.onnx.text.deployment import OnnxTextModel, Tail
from deployments.vllm.tiny_model import VOCABULARY, make_tiny_llama
from tests.support.onnx_models import save, tensor
from tests.support.remote_servers import Hosted
from tests.support.servers import serve_asgi
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError, ContextLengthError, RequestError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph in which each token is followed by the next number."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")
    (folder / "model.safetensors").unlink()
    table = 4 * numpy.roll(numpy.eye(VOCABULARY, dtype=numpy.float32), 1, axis=1)
    save(
        folder / "model.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        [tensor("input_ids", TensorProto.INT64, ["batch", "length"])],
        [tensor("logits", TensorProto.FLOAT, ["batch", "length", VOCABULARY])],
        table=table,
    )
    return folder


def configure(folder: Path, **engine: Any) -> Any:
    return load_model_config(
        {
            "model": {"family": "onnxruntime", "name_or_path": str(folder)},
            "hardware": {"gpus": 0},
            "serving": {"engine": engine},
        }
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> OnnxTextModel:
    loaded = OnnxTextModel()
    loaded.load(configure(folder, default_max_new_tokens=5, max_model_len=40).to_cfg())
    return loaded


def test_each_token_follows_from_all_before(model: OnnxTextModel) -> None:
    assert model.acceleration["kv_cache"] is False
    found = model.infer({"token_ids": [300], "logprobs": 2})
    assert [entry["token_id"] for entry in found["logprobs"]] == [301, 302, 303, 304, 305]
    assert found["text"] == model.tokenizer.decode([301, 302, 303, 304, 305])
    assert found["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    assert found["logprobs"][0]["top"][0]["logprob"] == found["logprobs"][0]["logprob"]
    pieces = list(model.stream({"token_ids": [300]}))
    assert "".join(piece["text"] for piece in pieces) == found["text"]


def test_texts_end_where_they_should(model: OnnxTextModel, folder: Path) -> None:
    stop = model.tokenizer.decode([302, 303]).strip()
    found = model.infer({"token_ids": [300], "stop": [stop]})
    assert found["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == 3
    ended = model.infer({"token_ids": [300], "logit_bias": {1: 0.0, 2: 100.0}, "max_new_tokens": 2})
    assert ended["usage"]["completion_tokens"] in (1, 2)
    assert model.infer({"token_ids": [300] * 38})["usage"]["completion_tokens"] == 2
    with pytest.raises(ContextLengthError):
        model.infer({"token_ids": [300] * 40})
    for more in ({}, {"ignore_eos": True}):
        found = model.infer({"token_ids": [300], "stop_token_ids": [303], **more})
        assert (found["text"], found["finish_reason"]) == (
            model.tokenizer.decode([301, 302]),
            "stop",
        )
    tail = Tail(("abc",))
    assert [tail.ends(piece) for piece in ("xa", "b", "b", "ab", "c")] == [False] * 4 + [True]


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"text": "a", "token_ids": [1]},
        {"token_ids": [9999]},
        {"text": "a", "temperature": 3},
        {"text": "a", "stop_token_ids": [9999]},
    ],
)
def test_bad_inputs_are_refused(model: OnnxTextModel, inputs: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        model.infer(inputs)


async def test_openai_clients_get_completions_and_chats(folder: Path) -> None:
    config = configure(folder, default_max_new_tokens=5)
    assert check_model(config) == []
    cfg = config.model_dump(exclude_unset=True)
    with serve_asgi(Hosted(cfg, "texts"), lifespan="on") as address:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        done = await client.completions.create(model="texts", prompt=[300], max_tokens=3)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert done.choices[0].text == tokenizer.decode([301, 302, 303])
        chat = await client.chat.completions.create(
            model="texts", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        chunks = [chunk async for chunk in chat]
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        await client.close()


def test_what_is_no_decoder_or_has_no_effect_is_refused(folder: Path, tmp_path: Path) -> None:
    faults = check_model(configure(folder, batch_requests=True))
    assert "has no effect with `task: text-generation`" in str(faults[0])
    shutil.copy(folder / "model.onnx", tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="no tokenizer beside it"):
        OnnxTextModel().load(configure(tmp_path).to_cfg())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    save(
        tmp_path / "model.onnx",
        [helper.make_node("Gather", ["table", "pixels"], ["logits"])],
        [tensor("pixels", TensorProto.INT64, ["batch", "length"])],
        [tensor("logits", TensorProto.FLOAT, ["batch", "length", 4])],
        table=numpy.eye(4, dtype=numpy.float32),
    )
    with pytest.raises(ConfigError, match="no graph of a text decoder: lacks input_ids"):
        OnnxTextModel().load(configure(tmp_path).to_cfg())
