"""The family `hf-transformers` on the real stack: Serve, proxy, router and OpenAI's client."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import pytest
import torch
import transformers

from benchmarks.local_cluster import LocalCluster, model_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.bare_cluster import install
from tests.support.tiny_transformers.models import make_tiny_classifier, make_tiny_encoder
from tests.support.tiny_transformers.speech import make_tiny_speech

START_TIMEOUT_S = 300
NUM_TOKENS = 12
PROMPTS = [f"number {index} of many " * (1 + index % 5) for index in range(32)]


class Stack:
    """The running service and its models' folders."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.openai = openai.OpenAI(
            base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=90
        )


@pytest.fixture(scope="module")
def stack(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("transformers")
    makers: Any = {
        "writer": make_tiny_llama,
        "embedder": make_tiny_encoder,
        "speech": make_tiny_speech,
        "labels": make_tiny_classifier,
    }
    sections: dict[str, dict[str, Any]] = {
        "writer": {"task": "text-generation", "serving": {"max_ongoing_requests": 32}},
        "embedder": {"task": "embedding"},
        "speech": {
            "task": "custom",
            "serving": {"engine": {"pipeline_task": "automatic-speech-recognition"}},
        },
        "labels": {
            "task": "custom",
            "serving": {"engine": {"pipeline_task": "text-classification"}},
        },
    }
    applications = []
    for name, make in makers.items():
        make(folder / name)
        shared = {
            "model": {"family": "hf-transformers", "name_or_path": str(folder / name)},
            "model_optim": {"dtype": "float32"},
            "hardware": {"cpus": 0.2, "gpus": 0},
        }
        applications.append(model_application(name, {**shared, **sections[name]}))
    install(bare, applications, timeout_s=START_TIMEOUT_S)
    stack = Stack(bare, folder)
    with stack.openai:
        yield stack


def test_32_clients_get_what_one_would(stack: Stack) -> None:
    path = stack.folder / "writer"
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    def alone(prompt: str) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        found = model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
        return str(tokenizer.decode(found[0, inputs.input_ids.shape[1] :]))

    def ask(prompt: str) -> str:
        stream = stack.openai.completions.create(
            model="writer", prompt=prompt, max_tokens=NUM_TOKENS, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, PROMPTS))
    assert found == [alone(prompt) for prompt in PROMPTS]


def test_embeddings(stack: Stack) -> None:
    texts = ["the cat", "a small red dog runs", "blue"]
    answer = stack.openai.embeddings.create(model="embedder", input=texts)
    vectors = numpy.array([item.embedding for item in answer.data])
    numpy.testing.assert_allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(stack.folder / "embedder")
    model = transformers.AutoModel.from_pretrained(stack.folder / "embedder")
    with torch.no_grad():
        hidden = model(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state[0].mean(0)
    numpy.testing.assert_allclose(vectors[0], hidden / hidden.norm(), atol=1e-5)
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in texts)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 48 tokens"):
        stack.openai.embeddings.create(model="embedder", input="cat " * 100)


def test_transcriptions_find_their_model_in_a_form(stack: Stack) -> None:
    at = numpy.arange(32000) / 16000
    samples = (numpy.sin(2 * numpy.pi * 440 * at) * 16000).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 16000, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())
    create: Any = stack.openai.audio.transcriptions.create
    recording = ("speech.wav", buffer.getvalue())
    plain: Any = transformers.pipeline("automatic-speech-recognition", str(stack.folder / "speech"))
    raw = {"raw": samples.astype("float32") / 32768, "sampling_rate": 16000}
    assert create(model="speech", file=recording).text == plain(raw)["text"].strip()
    verbose = create(model="speech", file=recording, response_format="verbose_json")
    assert verbose.segments[-1].end <= 2


def test_infer_and_cards(stack: Stack) -> None:
    body = {"model": "labels", "inputs": {"text": "the cat", "top_k": 4}}
    answer = httpx.post(f"{stack.cluster.url}/v1/infer", json=body, timeout=60).json()
    plain: Any = transformers.pipeline("text-classification", str(stack.folder / "labels"))
    assert [item["label"] for item in answer["outputs"]] == [
        item["label"] for item in plain("the cat", top_k=4)
    ]
    cards = {card.id for card in stack.openai.models.list().data}
    assert cards == {"writer", "embedder", "speech", "labels"}


def test_a_client_that_leaves_frees_the_engine(stack: Stack) -> None:
    body = {"model": "writer", "prompt": "go on", "max_tokens": 4000, "stream": True}
    for _ in range(40):  # more than may run at the same time
        with httpx.stream("POST", f"{stack.cluster.url}/v1/completions", json=body) as stream:
            next(stream.iter_lines())
    answer = stack.openai.completions.create(model="writer", prompt="next", max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


@pytest.mark.parametrize("name", ["writer", "embedder", "speech", "labels"])
def test_the_router_says_what_computes(stack: Stack, name: str) -> None:
    page = httpx.get(f"{stack.cluster.url}/v1/models/{name}", timeout=30).json()
    assert page["card"]["family"] == "hf-transformers"
    found = page["acceleration"]
    assert (found["device"], found["dtype"], found["compile"]) == ("cpu", "float32", False)
    assert found["attention"] in ("sdpa", "eager")
    own = httpx.get(f"{stack.cluster.url}/models/{name}/v1/models/{name}", timeout=30).json()
    assert own["acceleration"] == found
