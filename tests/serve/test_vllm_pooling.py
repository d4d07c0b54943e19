"""A real vLLM model for embeddings: no request with many texts takes it from the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.vllm.tiny_model import make_tiny_llama
from tests.serve.vllm_process import Server, make_config, serve, wait_for

pytestmark = pytest.mark.timeout(600)

LONG = "word " * 300
NUM_TEXTS = 1024
TIMEOUT_S = 240


@contextmanager
def pooling(factory: pytest.TempPathFactory, **engine: Any) -> Iterator[Server]:
    folder = factory.mktemp("pooling")
    make_tiny_llama(folder / "llama")
    engine = {"runner": "pooling", "max_num_seqs": 8, **engine}
    config = make_config(folder, task="embedding", engine=engine)
    with serve(config, folder / "log") as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pooling(tmp_path_factory) as server:
        yield server


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"model": "tiny", **body}, timeout=TIMEOUT_S)


def num_tokens(server: Server) -> float:
    """Returns how many tokens of prompts the engine has read."""
    text = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT_S).text
    lines = [line for line in text.splitlines() if line.startswith("vllm:prompt_tokens_total")]
    return sum(float(line.split()[-1]) for line in lines)


def test_one_text_does_not_wait_for_another_client_s_many(server: Server) -> None:
    before = num_tokens(server)
    with ThreadPoolExecutor(1) as client:
        texts = [f"{number} {LONG}" for number in range(NUM_TEXTS)]
        many = client.submit(post, server, "/v1/embeddings", input=texts, encoding_format="base64")
        wait_for(lambda: num_tokens(server) > before, TIMEOUT_S)
        one = post(server, "/v1/embeddings", input=["a short one"])
        read = num_tokens(server) - before
        answer = many.result(TIMEOUT_S)
    assert (one.status_code, answer.status_code) == (200, 200)
    assert len(answer.json()["data"]) == NUM_TEXTS
    assert read < 0.7 * (num_tokens(server) - before)


def test_texts_that_take_turns_keep_their_places_and_vectors(server: Server) -> None:
    texts = [f"{'word ' * (number % 7)}{number}" for number in range(40)]

    def vectors(texts: list[str]) -> Any:
        data = post(server, "/v1/embeddings", input=texts).json()["data"]
        return np.array([item["embedding"] for item in data])

    with ThreadPoolExecutor(4) as clients:
        found = [*clients.map(vectors, [texts] * 4)]
    alone = np.concatenate([vectors([text]) for text in texts])
    for each in found:
        np.testing.assert_allclose(each, alone, atol=1e-5)


def test_vectors_that_no_answer_holds_are_refused_and_others_answered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    texts = [LONG] * 400
    with pooling(tmp_path_factory, pooler_config={"task": "token_embed"}) as server:
        large = post(server, "/pooling", input=texts, task="token_embed")
        small = post(server, "/pooling", input=texts[:2], task="token_embed")
    assert large.status_code == 400, large.text[:300]
    assert "the vectors of the answer have more than 10000000 numbers" in large.text
    assert small.status_code == 200, small.text[:300]
    assert len(small.json()["data"][0]["data"]) > 100
