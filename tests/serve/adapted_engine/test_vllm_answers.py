"""What a vLLM model with adapters answers, over real HTTP, without Ray."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.serve.adapted_engine.conftest import GOOD, MAX_BODY_BYTES, PROMPTS, TOKENS
from tests.serve.vllm_process import Server, descendants

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(("model", "key"), [("tiny", "alone"), ("good", "adapted")])
def test_greedy_output_equals_transformers(
    server: Server, reference: dict[str, list[str]], model: str, key: str
) -> None:
    for prompt, expected in zip(PROMPTS, reference[key], strict=True):
        answer = server.client.completions.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
        )
        assert answer.choices[0].text == expected
        assert answer.model == model


def test_adapter_changes_the_output(reference: dict[str, list[str]]) -> None:
    assert reference["alone"] != reference["adapted"]


def test_models_lists_model_and_adapter(server: Server) -> None:
    assert {model.id for model in server.client.models.list()} == {"tiny", *GOOD}


def test_the_card_names_the_parsers_that_the_template_chose(server: Server) -> None:
    card = httpx.get(f"{server.url}/v1/models/tiny", timeout=30).json()["acceleration"]
    assert (card["tool_call_parser"], card["reasoning_parser"]) == ("hermes", None)


def test_chat_streams_what_it_answers_whole(server: Server) -> None:
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = server.client.chat.completions.create(**request)
    chunks = list(server.client.chat.completions.create(**request, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 1  # the beginning, and on a busy machine all tokens in one


def test_engine_on_cpu_is_one_process(server: Server) -> None:
    """Its worker would spin on a second core; `VLLM::Worker` is what that process is called."""
    titles = [" ".join(process.cmdline()) for process in descendants(server.process.pid)]
    assert [title for title in titles if "EngineCore" in title], titles
    assert not [title for title in titles if "Worker" in title], titles


def test_unknown_model_is_404(server: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="nobody", prompt="Hi")


@pytest.mark.parametrize("prefix", ["", "/models/tiny"])
@pytest.mark.parametrize(("model", "key"), [("tiny", "alone"), ("good", "adapted")])
def test_generic_route(
    server: Server, reference: dict[str, list[str]], prefix: str, model: str, key: str
) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(
        f"{server.url}{prefix}/v1/infer",
        json={"model": model, "inputs": inputs},
        headers={"x-request-id": "abc"},
        timeout=60,
    )
    assert answer.json() == {
        "model": model,
        "outputs": {"text": reference[key][0], "finish_reason": "length"},
    }
    assert answer.headers["x-request-id"] == "abc"


def test_vllm_answers_below_a_root_path(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/models/tiny/tokenize", json={"model": "tiny", "prompt": "Hello world"}
    )
    assert answer.status_code == 200
    assert answer.json()["count"] == 4
    assert httpx.get(f"{server.url}/models/tiny/health").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "no body"),
        (b"{", 400, "not valid JSON"),
        (b'{"inputs": {"text": "a"}}', 400, "model"),
        (b'{"model": "tiny"}', 400, "inputs"),
        (b'{"model": "tiny", "inputs": {}}', 400, "inputs.text"),
        (b'{"model": "tiny", "inputs": {"text": "a", "temperature": -1}}', 400, "temperature"),
        (b'{"model": "nobody", "inputs": {"text": "a"}}', 404, "nobody"),
    ],
)
def test_generic_route_refuses(server: Server, body: bytes, status: int, message: str) -> None:
    answer = httpx.post(f"{server.url}/v1/infer", content=body)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/infer", "/models/tiny/v1/completions"])
def test_a_body_that_is_too_large_is_refused(server: Server, path: str) -> None:
    whole = b" " * (MAX_BODY_BYTES + 1)
    for content in (whole, (whole[start : start + 2**16] for start in range(0, 2**20 + 1, 2**16))):
        answer = httpx.post(f"{server.url}{path}", content=content)
        assert answer.status_code == 413, answer.text
        assert "larger than 1048576 bytes" in answer.json()["error"]["message"]


def test_a_body_in_chunks_is_answered_as_a_whole_one(server: Server) -> None:
    request = {"model": "tiny", "prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0}
    whole = json.dumps(request).encode()
    url = f"{server.url}/v1/completions"
    answers = [
        httpx.post(url, content=content, headers={"content-type": "application/json"}).json()
        for content in (whole, (whole[start : start + 8] for start in range(0, len(whole), 8)))
    ]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["usage"]["completion_tokens"] == 4


def test_generic_route_streams(server: Server, reference: dict[str, list[str]]) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": TOKENS, "temperature": 0}
    answer = httpx.post(
        f"{server.url}/v1/infer",
        json={"model": "tiny", "inputs": inputs, "stream": True},
        timeout=60,
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert last == "[DONE]"
    outputs = [json.loads(event)["outputs"] for event in events]
    assert "".join(output["text"] for output in outputs) == reference["alone"][0]
    assert outputs[-1]["finish_reason"] == "length"


def test_generic_route_takes_only_post(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/infer").status_code == 405


@pytest.mark.parametrize(
    ("wide", "number"),
    [({"prompt": 64 * PROMPTS[:1]}, 64), ({"n": 32, "temperature": 1}, 32)],
    ids=["prompts", "n"],
)
async def test_requests_for_many_answers_hold_no_other_up(
    server: Server, reference: dict[str, list[str]], wide: dict[str, Any], number: int
) -> None:
    body = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    ended: list[str] = []

    async def ask(name: str, fields: dict[str, Any]) -> list[str]:
        answer = await client.post("/v1/completions", json={**body, "prompt": PROMPTS[0], **fields})
        assert answer.status_code == 200, answer.text
        ended.append(name)
        return [choice["text"] for choice in answer.json()["choices"]]

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        many = [asyncio.create_task(ask("many", wide)) for _ in range(12)]
        await asyncio.sleep(0.3)  # the engine, for 16 sequences, has begun with them
        before = len(ended)
        one = await ask("one", {})
        between = len(ended) - 1 - before
        answers = await asyncio.gather(*many)
    assert between <= 3, before
    assert {len(texts) for texts in answers} == {number}
    assert one[0].startswith(reference["alone"][0])
    if "prompt" in wide:
        assert {text for texts in answers for text in texts} == set(one)


async def test_long_prompts_of_one_key_hold_no_other_up(server: Server) -> None:
    ended: list[str] = []

    async def ask(key: str, prompt: list[int]) -> None:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
        answer = await client.post("/v1/completions", json=body, headers={"x-key": key})
        assert answer.status_code == 200, answer.text
        ended.append(key)

    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        prompts = ([at, *range(2, 500)] for at in range(10, 30))  # of no common prefix
        many = [asyncio.create_task(ask("many", prompt)) for prompt in prompts]
        while not ended:  # 64 tokens are read in a step
            await asyncio.sleep(0.01)
        before = len(ended)
        await ask("few", [5, 6, 7])
        between = len(ended) - 1 - before
        await asyncio.gather(*many)
    assert between <= 4
