"""The whole service as a client sees it: Ray, HAProxy, the router, vLLM and users' own classes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from benchmarks.local_cluster import model_application
from tests.serve.whole_service.conftest import ALIASES, MAX_MODEL_LEN, Service
from tests.support.cli_service import run_program
from tests.support.references import greedy_texts
from truthgpt_serve.cluster.state import parse_details
from truthgpt_serve.config.text_limits import TextLimitsSection

PROMPTS = ["Hello world", "The quick brown fox", "Once upon a time there was a", "12 + 30 ="]
TOKENS = 24
USER: list[Any] = [{"role": "user", "content": "Tell me about water."}]
FOLLOW_S = 8
"""Within this the router must have noticed a change, however busy the machine; usually 2 s do. A
model that is removed answers for 5 s: then a router that had not noticed would answer 503."""
LANGUAGE_MODELS = ["tiny", "tiny-adapter"]
ALL_MODELS = [
    "backwards", "echo", "embedder", "gpt-4o-mini", "org/Tiny-1B:latest", "shouting", "slow",
    "spelling", "tiny", "tiny-adapter",
]  # fmt: skip


def wait_until(condition: Callable[[], object], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.05)


def events_of(answer: httpx.Response) -> list[Any]:
    """Returns the JSON of a stream's events, which must end with `[DONE]`."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers.get_list("cache-control") == ["no-cache"]
    assert answer.headers.get_list("x-accel-buffering") == ["no"]
    *events, last = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert last == "[DONE]"
    return [json.loads(event) for event in events]


# -- language models


@pytest.fixture(scope="module")
def reference(service: Service) -> dict[str, list[str]]:
    """What `transformers` says with the same weights, by model name."""
    adapters = {"tiny": None, "tiny-adapter": service.adapter}
    return {
        name: greedy_texts(service.weights, PROMPTS, TOKENS, adapter=adapter)
        for name, adapter in adapters.items()
    }


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_greedy_text_equals_that_of_transformers(
    service: Service, reference: dict[str, list[str]], model: str
) -> None:
    for prompt, expected in zip(PROMPTS, reference[model], strict=True):
        answer = service.openai.completions.create(
            model=model, prompt=prompt, max_tokens=TOKENS, temperature=0
        )
        assert answer.model == model
        assert answer.choices[0].text == expected
        assert answer.choices[0].finish_reason == "length"


def test_an_adapter_answers_differently(reference: dict[str, list[str]]) -> None:
    for alone, adapted in zip(reference["tiny"], reference["tiny-adapter"], strict=True):
        assert alone != adapted


def test_many_at_once_get_their_own_answers(
    service: Service, reference: dict[str, list[str]]
) -> None:
    def ask(number: int) -> tuple[str, str]:
        model, at = LANGUAGE_MODELS[number % 2], number // 2 % len(PROMPTS)
        chunks = service.openai.completions.create(
            model=model, prompt=PROMPTS[at], max_tokens=TOKENS, temperature=0, stream=True
        )
        return reference[model][at], "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(24) as threads:
        for expected, text in threads.map(ask, range(48)):
            assert text == expected


def test_a_completion_streams_what_it_answers_whole(
    service: Service, reference: dict[str, list[str]]
) -> None:
    request: dict[str, Any] = {
        "model": "tiny", "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0,
    }  # fmt: skip
    whole = service.openai.completions.create(**request)
    chunks = list(
        service.openai.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, TOKENS)
    *texts, last = chunks
    assert (last.choices, last.usage) == ([], whole.usage)
    assert "".join(chunk.choices[0].text for chunk in texts) == reference["tiny"][0]
    assert texts[-1].choices[0].finish_reason == "length"
    assert len(texts) > 3  # on a busy machine several tokens come in one


def test_a_chat_streams_what_it_answers_whole(service: Service) -> None:
    request: dict[str, Any] = {
        "model": "tiny", "messages": USER, "max_tokens": TOKENS, "temperature": 0,
    }  # fmt: skip
    whole = service.openai.chat.completions.create(**request)
    *chunks, last = service.openai.chat.completions.create(
        **request, stream=True, stream_options={"include_usage": True}
    )
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == TOKENS
    assert last.usage == whole.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len(chunks) > 3  # as above


def test_a_chat_is_the_completion_of_its_template(service: Service) -> None:
    chat = service.openai.chat.completions.create(
        model="tiny", messages=USER, max_tokens=TOKENS, temperature=0
    )
    tokens = service.http.post("/tokenize", json={"model": "tiny", "messages": USER}).json()
    plain = service.openai.completions.create(
        model="tiny", prompt=tokens["tokens"], max_tokens=TOKENS, temperature=0
    )
    assert plain.choices[0].text == chat.choices[0].message.content
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == tokens["count"]


def test_several_choices_and_seeds(service: Service) -> None:
    def texts(seed: int) -> list[str]:
        answer = service.openai.completions.create(
            model="tiny", prompt="Hello", n=3, seed=seed, max_tokens=12, temperature=1
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.text for choice in answer.choices]

    first = texts(5)
    assert len(set(first)) == 3
    assert texts(5) == first
    assert texts(6) != first


def test_a_stop_text_ends_the_answer(service: Service, reference: dict[str, list[str]]) -> None:
    whole = reference["tiny"][1]
    stop = whole[20:26]
    answer = service.openai.completions.create(
        model="tiny", prompt=PROMPTS[1], max_tokens=TOKENS, temperature=0, stop=[stop]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities(service: Service) -> None:
    answer = service.openai.chat.completions.create(
        model="tiny", messages=USER, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content or []
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    for token in content:
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert token.top_logprobs[0].token == token.token
    completion = service.openai.completions.create(
        model="tiny", prompt="Hello", max_tokens=3, temperature=0, logprobs=2
    )
    assert completion.choices[0].logprobs is not None
    assert len(completion.choices[0].logprobs.tokens or []) == 3


def test_a_named_tool_is_called(service: Service) -> None:
    parameters = {
        "type": "object",
        "properties": {"unit": {"enum": ["metre", "mile"]}},
        "required": ["unit"],
        "additionalProperties": False,
    }
    answer = service.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        tools=[
            {
                "type": "function",
                "function": {"name": "measure", "parameters": parameters, "strict": True},
            }
        ],
        tool_choice={"type": "function", "function": {"name": "measure"}},
        max_tokens=300,
        temperature=0,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "measure"
    assert json.loads(call.function.arguments)["unit"] in ("metre", "mile")


def test_a_json_schema_is_obeyed(service: Service) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": False,
    }
    answer = service.openai.chat.completions.create(
        model="tiny",
        messages=USER,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
        max_tokens=300,
        temperature=0,
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert set(value) == {"colour", "sure"}
    assert value["colour"] in ("red", "blue")
    assert isinstance(value["sure"], bool)


def test_responses_and_messages_pass_through(service: Service) -> None:
    response = service.openai.responses.create(
        model="tiny", input="Hello world", max_output_tokens=8, temperature=0
    )
    assert response.model == "tiny"
    assert response.output_text
    assert response.usage is not None
    assert response.usage.output_tokens == 8
    stream = service.openai.responses.create(
        model="tiny", input="Hello world", max_output_tokens=8, temperature=0, stream=True
    )
    deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(deltas) == response.output_text

    request = {"model": "tiny", "messages": USER, "max_tokens": 8, "temperature": 0}
    message = service.http.post("/v1/messages", json=request).json()
    chat = service.http.post("/v1/chat/completions", json=request).json()
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][0]["text"] == chat["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_tokens_there_and_back(service: Service, model: str) -> None:
    tokens = service.http.post("/tokenize", json={"model": model, "prompt": "Hello world"}).json()
    assert tokens["count"] == len(tokens["tokens"]) == 4
    assert tokens["max_model_len"] == MAX_MODEL_LEN
    text = service.http.post("/detokenize", json={"model": model, "tokens": tokens["tokens"]})
    assert text.json() == {"prompt": "Hello world"}


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_the_generic_route_of_a_language_model(
    service: Service, reference: dict[str, list[str]], model: str
) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": TOKENS, "temperature": 0}
    whole = service.http.post("/v1/infer", json={"model": model, "inputs": inputs})
    outputs = {"text": reference[model][0], "finish_reason": "length"}
    assert whole.json() == {"model": model, "outputs": outputs}
    stream = service.http.post("/v1/infer", json={"model": model, "inputs": inputs, "stream": True})
    items = [event["outputs"] for event in events_of(stream)]
    assert "".join(item["text"] for item in items) == reference[model][0]
    assert items[-1]["finish_reason"] == "length"


def test_the_engine_stops_when_the_client_leaves(service: Service) -> None:
    def metric(name: str) -> float:
        text = service.http.get("/models/tiny/metrics", follow_redirects=True).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    request = {"model": "tiny", "prompt": "Hello", "max_tokens": 500, "ignore_eos": True}
    for _ in range(3):
        with service.http.stream(
            "POST", "/v1/completions", json={**request, "stream": True}
        ) as answer:
            next(answer.iter_bytes())
    wait_until(lambda: metric("vllm:num_requests_running") == 0, 5)
    tokens = metric("vllm:generation_tokens_total")
    time.sleep(0.5)
    assert metric("vllm:generation_tokens_total") == tokens


# -- embeddings


def test_embeddings(service: Service) -> None:
    texts = ["Hello world", "The quick brown fox", "Hello world"]
    answer = service.openai.embeddings.create(model="embedder", input=texts)
    vectors = [item.embedding for item in answer.data]
    assert [len(vector) for vector in vectors] == [128, 128, 128]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-4)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-4)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    assert answer.usage.prompt_tokens > 8

    request = {"model": "embedder", "inputs": {"text": texts[0]}}
    generic = service.http.post("/v1/infer", json=request).json()
    assert generic["outputs"]["embedding"] == pytest.approx(vectors[0], abs=1e-4)
    (event,) = events_of(service.http.post("/v1/infer", json={**request, "stream": True}))
    assert event["outputs"]["embedding"] == pytest.approx(vectors[0], abs=1e-4)


def test_scores_and_ranks(service: Service) -> None:
    score = service.http.post(
        "/v1/score", json={"model": "embedder", "text_1": "Hello", "text_2": "Hello"}
    ).json()
    assert score["data"][0]["score"] == pytest.approx(1, abs=1e-4)
    documents = ["The quick brown fox", "Hello"]
    ranks = service.http.post(
        "/v1/rerank", json={"model": "embedder", "query": "Hello", "documents": documents}
    ).json()
    assert [result["index"] for result in ranks["results"]] == [1, 0]


# -- the service's own pages


def test_models_are_listed_with_their_adapters(service: Service) -> None:
    listed = {model.id: model for model in service.openai.models.list()}
    assert list(listed) == ALL_MODELS
    parents = {name: getattr(model, "parent", None) for name, model in listed.items()}
    assert parents == {**dict.fromkeys(ALL_MODELS), "tiny-adapter": "tiny"}
    others = {name: getattr(model, "alias_of", None) for name, model in listed.items()}
    assert {name: of for name, of in others.items() if of} == ALIASES
    for model in listed.values():
        assert model.object == "model"
        assert model.owned_by == "truthgpt-serve"
        assert time.time() - 3600 < model.created <= time.time()


def test_a_model_has_a_card(service: Service) -> None:
    card = service.http.get("/v1/models/tiny").json()["card"]
    assert card == {
        "task": "text-generation",
        "family": "vllm",
        "run_name": "demo",
        "affinity": "prefix",
        "aliases": ["org/Tiny-1B:latest"],
        "adapters": ["tiny-adapter"],
        "limits": {
            "max_ongoing_requests": 16,
            "max_queued_requests": 32,
            "max_request_s": 600,
            **TextLimitsSection().model_dump(),
        },
    }
    adapter = service.openai.models.retrieve("tiny-adapter")
    assert (adapter.id, getattr(adapter, "parent", None)) == ("tiny-adapter", "tiny")
    own = service.http.get("/v1/models/shouting").json()["card"]
    assert (own["family"], own["limits"]["max_ongoing_requests"]) == ("shouting", 1)
    assert own["run_name"] == "loud"  # by a variable of the environment
    with pytest.raises(openai.NotFoundError):
        service.openai.models.retrieve("nosuch")


def test_pages(service: Service) -> None:
    assert service.http.get("/health").json() == {"status": "ok"}
    ready = service.http.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    models = ready.json()["models"]
    assert sorted(models) == [name for name in ALL_MODELS if name not in ("tiny-adapter", *ALIASES)]
    for model in models.values():
        assert model == {"status": "RUNNING", "num_running_replicas": 1}
    paths = service.http.get("/openapi.json").json()["paths"]
    assert {"/v1/models", "/v1/chat/completions", "/v1/infer", "/ready"} <= paths.keys()
    docs = service.http.get("/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "/v1/chat/completions" in docs.text
    home = service.http.get("/")
    assert (home.status_code, home.headers["location"]) == (307, "/docs")


def test_metrics(service: Service) -> None:
    service.http.post("/v1/infer", json={"model": "echo", "inputs": {"text": "a"}})
    node = service.http.get("/metrics")
    assert node.headers["content-type"].startswith("text/plain")
    names = {line.split("{")[0] for line in node.text.splitlines() if line[:1] != "#"}
    assert {
        "ray_component_cpu_percentage",
        "ray_serve_deployment_replica_healthy",
        "ray_serve_num_ongoing_http_requests",
    } <= names
    engine = service.http.get("/models/tiny/metrics", follow_redirects=True).text
    assert "vllm:generation_tokens_total" in engine
    assert "vllm:time_to_first_token_seconds_bucket" in engine


# -- request ids


def request_of(path: str, body: Any) -> dict[str, Any]:
    return {"method": "GET" if body is None else "POST", "url": path, "json": body}


def chat_of(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": USER, "max_tokens": 2, **fields}


CHAT = "/v1/chat/completions"
WITH_IDS: dict[str, dict[str, Any]] = {
    "page": request_of("/v1/models", None),
    "redirect": request_of("/", None),
    "router's error": request_of(CHAT, {}),
    "vLLM": request_of(CHAT, chat_of("tiny")),
    "vLLM's stream": request_of(CHAT, chat_of("tiny", stream=True)),
    "vLLM's error": request_of(CHAT, chat_of("tiny", n=0)),
    "vLLM, generic route": request_of("/v1/infer", {"model": "tiny", "inputs": {"text": "a"}}),
    "class": request_of(CHAT, chat_of("echo")),
    "class's stream": request_of(CHAT, chat_of("echo", stream=True)),
    "class's error": request_of(CHAT, chat_of("echo", n=0)),
    "vLLM alone": request_of("/models/tiny" + CHAT, chat_of("tiny")),
    "vLLM alone, generic route": request_of(
        "/models/tiny/v1/infer", {"model": "tiny", "inputs": {"text": "a"}, "stream": True}
    ),
    "class alone": request_of("/models/echo" + CHAT, chat_of("echo")),
    "class's stream alone": request_of("/models/echo" + CHAT, chat_of("echo", stream=True)),
    "class's error alone": request_of("/models/echo" + CHAT, {}),
    "class's page alone": request_of("/models/echo/health", None),
}


@pytest.mark.parametrize("request_", WITH_IDS.values(), ids=WITH_IDS.keys())
def test_request_ids_come_back_once(service: Service, request_: dict[str, Any]) -> None:
    named = service.http.request(**request_, headers={"x-request-id": "mine-42"})
    assert named.headers.get_list("x-request-id") == ["mine-42"]
    (made,) = service.http.request(**request_).headers.get_list("x-request-id")
    (other,) = service.http.request(**request_).headers.get_list("x-request-id")
    assert len(made) >= 32
    assert made != other
    for name in ("date", "server", "content-type", "content-length"):
        assert len(named.headers.get_list(name)) <= 1


# -- users' own classes


def test_a_plain_class(service: Service) -> None:
    answer = service.http.post("/v1/infer", json={"model": "shouting", "inputs": {"text": "hey"}})
    assert answer.json()["outputs"]["text"] == "HEY!!"
    chat = service.openai.chat.completions.create(
        model="shouting", messages=[{"role": "user", "content": "hey"}]
    )
    assert chat.choices[0].message.content == "USER: HEY!!"
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is None
    completion = service.openai.completions.create(model="shouting", prompt="hey")
    assert completion.choices[0].text == "HEY!!"
    stopped = service.openai.completions.create(model="shouting", prompt="hey", stop="!")
    assert stopped.choices[0].text == "HEY"


def test_a_plain_class_streams_one_chunk(service: Service) -> None:
    chunks = service.openai.chat.completions.create(
        model="shouting", messages=[{"role": "user", "content": "hey"}], stream=True
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert [text for text in texts if text] == ["USER: HEY!!"]
    answer = service.http.post(
        "/v1/infer", json={"model": "shouting", "inputs": {"text": "hey"}, "stream": True}
    )
    assert [event["outputs"]["text"] for event in events_of(answer)] == ["HEY!!"]


def test_a_plain_class_gets_one_request_at_a_time(service: Service) -> None:
    def ask(_: int) -> tuple[float, float]:
        inputs = {"text": "hey", "sleep_s": 0.3}
        answer = service.http.post("/v1/infer", json={"model": "shouting", "inputs": inputs})
        outputs = answer.json()["outputs"]
        return outputs["began"], outputs["ended"]

    with ThreadPoolExecutor(3) as threads:
        spans = sorted(threads.map(ask, range(3)))
    for earlier, later in pairwise(spans):
        assert later[0] >= earlier[1]


def test_a_failing_class_is_500_and_its_log_says_why(service: Service) -> None:
    answer = service.http.post(
        "/v1/infer",
        json={"model": "shouting", "inputs": {"text": "hey", "fail": True}},
        headers={"x-request-id": "failing-9"},
    )
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": (
            "the model 'shouting' failed; its log has the cause under request id failing-9"
        ),
        "type": "server_error",
        "param": None,
        "code": None,
    }
    wait_until(lambda: "LookupError: the secret reason" in service.read_logs())
    lines = service.read_logs().splitlines()
    at = next(number for number, line in enumerate(lines) if "request failing-9" in line)
    traceback = "\n".join(lines[at : at + 100])
    assert "Traceback (most recent call last)" in traceback
    assert "shouting_models.py" in traceback
    answer = service.http.post("/v1/infer", json={"model": "shouting", "inputs": {"text": "hey"}})
    assert answer.status_code == 200


def test_a_class_with_stream(service: Service) -> None:
    arrivals: list[tuple[float, str]] = []
    for chunk in service.openai.chat.completions.create(
        model="spelling", messages=[{"role": "user", "content": "abc"}], stream=True
    ):
        if text := chunk.choices[0].delta.content:
            arrivals.append((time.monotonic(), text))
    assert "".join(text for _, text in arrivals) == "u-s-e-r-:- -a-b-c-"
    assert len(arrivals) == 9
    assert arrivals[-1][0] - arrivals[0][0] > 0.15
    whole = service.openai.completions.create(model="spelling", prompt="abcdef", max_tokens=3)
    assert whole.choices[0].text == "a-b-c-"
    answer = service.http.post(
        "/v1/infer",
        json={
            "model": "spelling",
            "inputs": {"text": "abc", "max_new_tokens": 2},
            "stream": True,
        },
    )
    assert [event["outputs"]["text"] for event in events_of(answer)] == ["a-", "b-"]


def test_a_class_named_like_a_built_in_family_replaces_it(service: Service) -> None:
    completion = service.openai.completions.create(model="backwards", prompt="hey you")
    assert completion.choices[0].text == "uoy yeh"
    built_in = service.openai.completions.create(model="echo", prompt="hey you", max_tokens=3)
    assert built_in.choices[0].text == " hey you hey"
    message = "model family 'echo': user_echo:Backwards replaces the built-in one"
    wait_until(lambda: message in service.read_logs())


# -- limits and change


def test_a_full_queue_is_429(service: Service) -> None:
    def ask(_: int) -> httpx.Response:
        return service.http.post(CHAT, json=chat_of("slow", max_tokens=30))

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, range(8)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) >= 5
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        error = answer.json()["error"]
        assert error.pop("message")
        assert error == {"type": "rate_limit_error", "param": None, "code": "overloaded"}
    with pytest.raises(openai.RateLimitError), ThreadPoolExecutor(4) as threads:
        drain(
            threads.map(
                lambda _: service.openai.completions.create(model="slow", prompt="a"), range(4)
            )
        )


def test_a_request_that_cannot_begin_in_time_is_refused(service: Service) -> None:
    """Without keys, as with them."""
    request = {**chat_of("slow", max_tokens=40), "stream": True}
    with service.http.stream("POST", CHAT, json=request) as running:
        lines = running.iter_lines()
        assert next(lines).startswith("data:")
        began_s = time.monotonic()
        late = service.http.post(CHAT, json=request, headers={"x-request-timeout-ms": "300"})
        assert time.monotonic() - began_s < 3
    assert late.status_code == 429
    assert "(`x-request-timeout-ms`)" in late.json()["error"]["message"]
    wrong = service.http.post(CHAT, json=request, headers={"x-request-timeout-ms": "soon"})
    assert wrong.status_code == 400


def test_two_requests_at_the_same_moment_both_fit(service: Service) -> None:
    """Ray's queue counts what has just come as waiting; it may not refuse what fits behind it."""
    wait_until(lambda: models_of(service)["slow"]["ongoing"] == 0, 30)
    with ThreadPoolExecutor(2) as threads:
        for _ in range(8):
            asked = [
                threads.submit(service.http.post, CHAT, json=chat_of("slow", max_tokens=1))
                for _ in range(2)
            ]
            assert [answer.result().status_code for answer in asked] == [200, 200]


def drain(items: Iterable[object]) -> None:
    for _ in items:
        pass


def test_the_state_that_serve_reports_has_what_the_router_reads(service: Service) -> None:
    state = parse_details(service.cluster.details())
    assert state.proxy_port == service.cluster.port
    tiny = state.applications["tiny"]
    assert (tiny.route_prefix, tiny.status, tiny.num_running_replicas) == (
        "/models/tiny", "RUNNING", 1,
    )  # fmt: skip
    assert tiny.card is not None
    assert tiny.card["adapters"] == ["tiny-adapter"]
    assert time.time() - 3600 < tiny.deployed_at_s <= time.time()
    assert state.applications["router"].num_running_replicas == 1
    assert state.applications["router"].card is None


def test_models_come_and_go_while_the_others_answer(service: Service) -> None:
    newcomer = model_application(
        "newcomer", {"model": {"family": "echo"}, "hardware": {"cpus": 0.1, "gpus": 0}}
    )
    request: dict[str, Any] = {"model": "tiny", "prompt": "Hello", "temperature": 0}
    expected = service.openai.completions.create(**request).choices[0].text
    pids = service.cluster.replica_pids("tiny")

    def is_listed() -> bool:
        return "newcomer" in {model.id for model in service.openai.models.list()}

    def statuses_until(wanted: int, limit_s: float) -> list[int]:
        """Asks the newcomer, and the model that stays, until it answers with this status."""
        found: list[int] = []

        def ask() -> bool:
            inputs = {"text": "hey", "max_new_tokens": 2}
            answer = service.http.post("/v1/infer", json={"model": "newcomer", "inputs": inputs})
            found.append(answer.status_code)
            if answer.status_code == 200:
                assert answer.json()["outputs"]["text"] == " hey hey"
            else:
                error = answer.json()["error"]
                assert error["code"] in ("model_not_found", "model_unavailable"), error
            assert service.openai.completions.create(**request).choices[0].text == expected
            return answer.status_code == wanted

        wait_until(ask, limit_s)
        return found

    service.cluster.deploy([*service.applications, newcomer])
    assert set(statuses_until(200, 30)) <= {404, 503, 200}
    wait_until(is_listed, FOLLOW_S)

    service.cluster.deploy(service.applications)
    assert set(statuses_until(404, FOLLOW_S)) <= {200, 404}
    wait_until(lambda: not is_listed(), 15)  # Serve drains its replica for 5 s first
    assert service.cluster.replica_pids("tiny") == pids


# -- truthgpt bench


def bench(service: Service, *options: str) -> tuple[int, Any]:
    """Returns the exit code and the first result of `truthgpt bench --json`."""
    command = [sys.executable, "-c", "from truthgpt_serve.cli import main; main()", "bench"]
    command += ["--url", service.cluster.url, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["results"][0]


@pytest.mark.parametrize("model", ["echo", "tiny"])
def test_bench_measures_a_model_through_the_router(service: Service, model: str) -> None:
    options = ("--concurrency", "3", "--requests", "9", "--input-len", "4", "--output-len", "7")
    code, result = bench(service, "--model", model, "--ignore-eos", *options)
    assert (code, result["completed"], result["failed"]) == (0, 9, 0)
    assert result["total_output_tokens"] == 9 * 7
    assert result["truthgpt_bench"]["token_counts"] == "usage"
    assert 0 < result["mean_ttft_ms"] < result["mean_e2el_ms"]


def test_bench_counts_what_an_overloaded_model_refuses(service: Service) -> None:
    options = ("--concurrency", "8", "--requests", "16", "--output-len", "8", "--warmup", "0")
    code, result = bench(service, "--model", "slow", *options)
    errors = result["truthgpt_bench"]["errors"]
    assert code == 1
    assert result["completed"] >= 2
    assert list(errors) == ["http 429"]
    assert result["completed"] + errors["http 429"]["count"] == 16


# -- the command line


def models_of(service: Service) -> dict[str, dict[str, Any]]:
    done = run_program("models", "--json", env={"TRUTHGPT_URL": service.cluster.url})
    assert done.returncode == 0, done.stderr
    return {model["name"]: model for model in json.loads(done.stdout)["models"]}


def test_the_command_line_shows_models_and_their_load(service: Service) -> None:
    expected = sorted(set(ALL_MODELS) - {"tiny-adapter", *ALIASES})
    # The model that an earlier test took away is shown until its replica has ended.
    wait_until(lambda: sorted(models_of(service)) == expected, 30)
    found = models_of(service)
    assert (found["tiny"]["family"], found["tiny"]["adapters"]) == ("vllm", ["tiny-adapter"])
    assert found["tiny"]["aliases"] == ["org/Tiny-1B:latest"]
    assert {model["state"] for model in found.values()} == {"RUNNING"}
    assert {model["num_replicas"] for model in found.values()} == {1}
    # The engine is a process of its own, and counts.
    assert found["tiny"]["memory_bytes"] > 1.5 * found["echo"]["memory_bytes"] > 50e6
    assert found["tiny"]["rate_unit"] == "tokens"


def test_the_command_line_shows_who_waits(service: Service) -> None:
    body = json.dumps({"model": "slow", "messages": USER, "max_tokens": 2000, "stream": True})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {service.cluster.host.address}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    address = (service.cluster.host.address, service.cluster.port)

    def load() -> tuple[int, int]:
        slow = models_of(service)["slow"]
        return slow["ongoing"], slow["queued"]

    wait_until(lambda: load() == (0, 0), 30)
    with ExitStack() as stack:
        for _ in range(2):  # one that is answered, and one that waits
            client = stack.enter_context(socket.create_connection(address, timeout=30))
            client.sendall((head + body).encode())
        wait_until(lambda: load() == (1, 1), 60)
    wait_until(lambda: load() == (0, 0), 60)
