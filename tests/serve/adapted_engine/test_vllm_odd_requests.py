"""Odd values of ordinary fields, seeded, on one vLLM engine with adapters: it must live.

`ODD_REQUESTS` and `ODD_SEED` in the environment set how many and which.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployments.vllm.tiny_model import VOCABULARY
from tests.serve.vllm_process import Server

pytestmark = pytest.mark.timeout(900)

NUM_REQUESTS = int(os.environ.get("ODD_REQUESTS", "200"))
SEED = int(os.environ.get("ODD_SEED", "12"))
TIMEOUT_S = 120
LONG = "The quick brown fox jumps over the lazy dog and runs into the wood. " * 12

PROMPTS: list[Any] = [
    "Once upon a time",
    LONG,
    LONG * 20,
    "",
    [],
    [""],
    ["Once", LONG],
    [1, 2, 3],
    [[1, 2], [3] * 100],
    [VOCABULARY - 1],
    [VOCABULARY],
    [VOCABULARY + 7, 5],
    [-1],
    [2**31],
    [2**63],
    [[]],
    [0] * 1023,
    [0] * 1024,
    "\x00\ud83d\ude00\u200d",
    "<|im_end|><|endoftext|>",
    None,
    17,
]
FLOATS: list[Any] = [0, -0.0, 1e-9, 1e-45, 1, 2, 1e30, -1, 1e308, "1", True]
INTEGERS: list[Any] = [
    0,
    1,
    -1,
    2,
    5,
    20,
    2**31,
    2**31 - 1,
    2**32,
    2**63,
    2**64,
    -(2**63),
    1.5,
    "3",
]
TOKENS: list[Any] = [[], [0], [VOCABULARY - 1], [VOCABULARY], [2**31], [2**63], [-1], [1.5], ["a"]]
BIASES: list[Any] = [
    {},
    {"5": 100},
    {"5": -100},
    {"5": 1e300},
    {str(VOCABULARY): 5},
    {"-1": 1},
    {"99999999999": 1},
    {"x": 1},
    {"5": "x"},
    {str(token): -100 for token in range(VOCABULARY)},
]
FIELDS: dict[str, list[Any]] = {
    "prompt_logprobs": [0, 1, 3, 20, 21, -1, VOCABULARY, 2**31, "1", True],
    "logprobs": [0, 1, 5, 20, 21, -1, 2**31, True],
    "top_logprobs": [0, 1, 20, -1, 2**31],
    "echo": [True, False],
    "max_tokens": [0, 1, 2, 16, 700, 2000, -1, 2**31, 2**63, None],
    "min_tokens": INTEGERS,
    "n": [0, 1, 2, 3, -1, "2"],
    "best_of": [1, 2, -1],
    "temperature": FLOATS,
    "top_p": [*FLOATS, 1e-12],
    "min_p": FLOATS,
    "top_k": INTEGERS,
    "seed": [0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 1.5, None],
    "frequency_penalty": FLOATS,
    "presence_penalty": FLOATS,
    "repetition_penalty": FLOATS,
    "logit_bias": BIASES,
    "allowed_token_ids": TOKENS,
    "bad_words": [[], [""], ["a"], [" "], ["Once", LONG], ["\x00"], [1]],
    "stop": ["", [""], ["a"], "a", ["\x00"], [LONG], [1]],
    "stop_token_ids": TOKENS,
    "ignore_eos": [True],
    "skip_special_tokens": [False],
    "spaces_between_special_tokens": [False],
    "truncate_prompt_tokens": [0, 1, 5, -1, -2, 1024, 5000, 2**31, 2**63],
    "include_stop_str_in_output": [True],
    "detokenize": [False],
    "return_token_ids": [True],
    "return_tokens_as_token_ids": [True],
    "add_special_tokens": [False],
    "prompt_embeds": ["", "AAAA", ["AAAA"], 5],
    "cache_salt": ["", "x", "x" * 5000, 5],
    "vllm_xargs": [{}, {"a": 1}, {"kv_transfer_params": {}}, {"a": {"b": 1}}, 5],
    "kv_transfer_params": [{}, {"do_remote_decode": True}, {"do_remote_prefill": True}, 5],
    "priority": [0, 1, -1, 2**31, 2**63],
    "thinking_token_budget": [0, 1, -1, 2**31],
    "logits_processors": [[], ["x"]],
    "stream": [True],
    "stream_options": [{"include_usage": True}, {}],
    "suffix": ["", "x"],
    "user": ["", "x" * 10_000],
    "structured_outputs": [{}, {"choice": ["a", "b"]}, {"choice": []}, {"regex": "["}, 5],
    "response_format": [{"type": "json_object"}, {"type": "text"}, {"type": "x"}, {}],
    "repetition_detection": [{}, {"max_pattern_size": 2**31, "min_count": 0}, 5],
    "logprob_token_ids": TOKENS,
    "prompt_logprob_token_ids": TOKENS,
    "prompt_logprob_start": INTEGERS,
    "request_id": ["", "x" * 3000, "\x00"],
}
ROUTES = ("/v1/completions", "/v1/chat/completions", "/v1/infer", "/v1/responses", "/tokenize")


def make_requests(seed: int, number: int) -> list[tuple[str, dict[str, Any]]]:
    """Returns routes and bodies; each field comes at least once where the number allows it."""
    draw = random.Random(seed)
    requests = []
    names = list(FIELDS)
    for index in range(number):
        chosen = {names[index % len(names)], *draw.choices(names, k=draw.randrange(3))}
        fields = {name: draw.choice(FIELDS[name]) for name in sorted(chosen)}
        route = draw.choice(ROUTES[:2] if draw.random() < 0.8 else ROUTES)
        fields.setdefault("max_tokens", draw.choice([1, 8, 24]))
        body = {"model": draw.choice(["tiny", "attention", "head"])}
        prompt = draw.choice(PROMPTS[:3]) if draw.random() < 0.6 else draw.choice(PROMPTS)
        requests.append((route, shape(route, {**body, **fields}, prompt)))
    return requests


def shape(route: str, body: dict[str, Any], prompt: Any) -> dict[str, Any]:
    if route == "/v1/chat/completions":
        if "logprobs" in body:
            body["logprobs"] = bool(body["logprobs"])
        return {**body, "messages": [{"role": "user", "content": prompt}]}
    if route == "/v1/responses":
        return {**body, "input": prompt}
    if route == "/v1/infer":
        stream = bool(body.pop("stream", False))
        return {"model": body.pop("model"), "stream": stream, "inputs": {**body, "text": prompt}}
    return {**body, "prompt": prompt}


def find_engine(server: Server) -> int:
    children = psutil.Process(server.process.pid).children(recursive=True)
    (core,) = [child.pid for child in children if "EngineCore" in " ".join(child.cmdline())]
    return core


def send(server: Server, request: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    route, body = request
    data = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}{route}", content=data, headers=headers, timeout=TIMEOUT_S)
    return answer.status_code, answer.text


def test_no_request_ends_the_engine(server: Server, tmp_path: Path) -> None:
    before = find_engine(server)
    requests = make_requests(SEED, NUM_REQUESTS)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda request: send(server, request), requests))
    failed = [
        (status, text[:300], route, json.dumps(body)[:600])
        for (route, body), (status, text) in zip(requests, answers, strict=True)
        if status >= 500
    ]
    for line in failed:
        print(*line, sep="\n    ")
    assert httpx.get(f"{server.url}/check", timeout=60).status_code == 200
    assert find_engine(server) == before
    assert not failed
    status, text = send(
        server, ("/v1/completions", {"model": "head", "prompt": "Once", "max_tokens": 2})
    )
    assert status == 200, text
