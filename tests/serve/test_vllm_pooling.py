"""A real vLLM model for embeddings: no request with many texts takes it from the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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


def longest_beside(ask: Callable[[], object], work: Callable[[], httpx.Response]) -> float:
    """Returns how long the slowest of many small requests took, as a share of a large one."""
    with ThreadPoolExecutor(1) as client:
        began_s, slowest_s = time.monotonic(), 0.0
        large = client.submit(work)
        while not large.done():
            one_s = time.monotonic()
            ask()
            slowest_s = max(slowest_s, time.monotonic() - one_s)
            time.sleep(0.02)
        took_s = time.monotonic() - began_s
    assert large.result().status_code == 200, large.result().text[:300]
    return slowest_s / took_s


def test_long_texts_that_are_tokenized_hold_up_no_others(server: Server) -> None:
    texts = ["word " * 4000] * 200

    def many() -> httpx.Response:
        return post(server, "/v1/embeddings", input=texts, truncate_prompt_tokens=8)

    def one() -> None:
        assert post(server, "/v1/embeddings", input="a short one").status_code == 200

    assert longest_beside(one, many) < 0.5


def test_a_document_that_is_cut_holds_up_no_others(server: Server) -> None:
    def rank() -> httpx.Response:
        documents = ["word " * 500_000, "a short one"]
        fields = {"query": "a", "documents": documents, "max_tokens_per_doc": 8}
        return post(server, "/v1/rerank", **fields)

    def check() -> None:
        assert httpx.get(f"{server.url}/check", timeout=TIMEOUT_S).status_code == 200

    assert longest_beside(check, rank) < 0.5


def test_a_score_that_lacks_its_documents_is_a_bad_request(server: Server) -> None:
    for text in ("a", "x" * 5_000_000):
        answer = post(server, "/v1/score", text_1=text)
        assert answer.status_code == 400, answer.text[:300]
        assert "text_2" in answer.text[:2000]


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
