"""Log-probabilities of prompts from vLLM with adapters, in mixed batches, against `peft`."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve.vllm_process import Server
from tests.support.references import greedy_texts, prompt_logprobs

pytestmark = pytest.mark.timeout(300)

PROMPTS = [
    "Once upon a time there was a",
    "12 + 30 =",
    "The quick brown fox jumps over the lazy dog and runs into the wood. " * 12,
    "Once",
]
ADAPTERS = ("attention", "head")


@pytest.fixture(scope="module")
def expected(models: Path) -> dict[str, list[list[float]]]:
    folder = models / "llama"
    adapted = {name: prompt_logprobs(folder, PROMPTS, adapter=models / name) for name in ADAPTERS}
    return {"": prompt_logprobs(folder, PROMPTS), **adapted}


def complete(server: Server, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "max_tokens": 1, "temperature": 0, **fields}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def echoed(answer: dict[str, Any]) -> list[list[float]]:
    return [choice["logprobs"]["token_logprobs"][1:-1] for choice in answer["choices"]]


def answered_logprobs(answer: dict[str, Any]) -> list[list[float]]:
    """Returns what `prompt_logprobs` says of the prompt's own tokens: the first of each entry."""
    return [
        [next(iter(entry.values()))["logprob"] for entry in choice["prompt_logprobs"][1:]]
        for choice in answer["choices"]
    ]


def check(found: list[list[float]], wanted: list[list[float]]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_adapters_change_the_prompts(expected: dict[str, list[list[float]]]) -> None:
    for name in ADAPTERS:
        difference = np.subtract(expected[name][0], expected[""][0])
        assert np.abs(difference).max() > 0.1


def test_prompts_of_all_adapters_in_one_batch(
    server: Server, expected: dict[str, list[list[float]]]
) -> None:
    requests: list[tuple[str, dict[str, Any]]] = []
    for name in ("", *ADAPTERS):
        model = {"model": name or "tiny", "prompt": PROMPTS}
        requests += [(name, {**model, "echo": True, "logprobs": 1})]
        requests += [(name, {**model, "prompt_logprobs": 0})]
        requests += [("others", {**model, "max_tokens": 40, "ignore_eos": True})]
    for _ in range(3):
        with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(lambda request: complete(server, **request[1]), requests))
        for (name, fields), answer in zip(requests, answers, strict=True):
            if "echo" in fields:
                check(echoed(answer), expected[name])
            elif "prompt_logprobs" in fields:
                check(answered_logprobs(answer), expected[name])


def test_one_after_the_other(server: Server, expected: dict[str, list[list[float]]]) -> None:
    for name in ("head", "", "attention"):
        for prompt, wanted in zip(PROMPTS, expected[name], strict=True):
            fields = {"model": name or "tiny", "prompt": prompt, "prompt_logprobs": 3}
            answer = complete(server, **fields, n=2, temperature=1, seed=1)
            check(answered_logprobs(answer), [wanted, wanted])


def test_sampled_rows_keep_their_adapter(server: Server) -> None:
    """The indices of the sampled rows are put back: later tokens are those without the field."""
    fields = {"model": "head", "prompt": PROMPTS[0], "max_tokens": 12}
    plain, measured = complete(server, **fields), complete(server, **fields, prompt_logprobs=2)
    assert plain["choices"][0]["text"] == measured["choices"][0]["text"]


def test_generated_tokens_of_an_adapted_head(server: Server, models: Path) -> None:
    expected = greedy_texts(models / "llama", PROMPTS, 12, adapter=models / "head")
    for prompt, text in zip(PROMPTS, expected, strict=True):
        answer = complete(server, model="head", prompt=prompt, max_tokens=12)
        assert answer["choices"][0]["text"] == text


def test_a_seed_is_kept_when_the_prompt_takes_several_steps(server: Server) -> None:
    """A prompt of three steps, alone and in a batch that cuts it elsewhere."""
    fields = {"model": "tiny", "prompt": PROMPTS[2], "max_tokens": 12, "temperature": 1, "seed": 7}
    alone = complete(server, **fields)["choices"][0]["text"]
    assert alone != complete(server, **{**fields, "seed": 8})["choices"][0]["text"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(server, **fields), range(8)))
    assert {answer["choices"][0]["text"] for answer in answers} == {alone}
