"""One request does not hold up the others: limits and grammars of vLLM models in the service."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # it has no types
import pytest

from tests.serve.two_engines.conftest import VllmService, wait_until
from tests.support.grammar_schemas import doubling, hostile, ordinary, wide

pytestmark = pytest.mark.timeout(540)

USER = [{"role": "user", "content": "Tell me a story."}]
COMPLETION, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
SLOWED_S = 5.0
"""By how much another's grammar may slow a structured request; a busy machine adds its own."""


def send(service: VllmService, path: str, **fields: Any) -> httpx.Response:
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 4}
    if path in (CHAT, MESSAGES):
        body["messages"] = USER
    elif path == RESPONSES:
        body = {"model": "tiny", "max_output_tokens": 4, "input": "x"}
    elif path == COMPLETION:
        body["prompt"] = "x"
    return service.http.post(path, json={**body, **fields})


def timed(service: VllmService, **outputs: Any) -> tuple[int, float]:
    started = time.monotonic()
    answer = send(service, COMPLETION, structured_outputs=outputs)
    return answer.status_code, time.monotonic() - started


TOO_MUCH = [
    (COMPLETION, {"n": 2000}, "n", "max_n"),
    (COMPLETION, {"n": "2000", "stream": True}, "n", "max_n"),
    (COMPLETION, {"prompt": ["x"] * 1000}, "prompt", "max_prompts"),
    (COMPLETION, {"prompt": [[1, 2]] * 1000}, "prompt", "max_prompts"),
    (COMPLETION, {"logprobs": 500}, "logprobs", "max_logprobs"),
    (COMPLETION, {"prompt_logprobs": -1}, "prompt_logprobs", "max_logprobs"),
    (COMPLETION, {"stop": [str(i) for i in range(99)]}, "stop", "max_stop_strings"),
    (COMPLETION, {"prompt": ["x"] * 99, "n": 30, "max_tokens": 999}, "max_tokens", "max_total_tok"),
    (CHAT, {"n": 2000}, "n", "max_n"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "max_logprobs"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias", "max_logit_bias"),
    (CHAT, {"messages": USER * 9000}, "messages", "max_messages"),
    (RESPONSES, {"input": USER * 9000}, "input", "max_messages"),
]


@pytest.mark.parametrize("prefix", ["", "/models/tiny"], ids=["router", "model"])
@pytest.mark.parametrize(("path", "fields", "param", "key"), TOO_MUCH)
def test_too_much_is_refused(
    service: VllmService, path: str, fields: dict[str, Any], param: str, key: str, prefix: str
) -> None:
    body = {"model": "tiny", "prompt": "x", "messages": USER, **fields}
    answer = service.http.post(f"{prefix}{path}", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert f"serving.limits.{key}" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [{"allowed_token_ids": [5, 6, 7]}, {"min_tokens": 30}, {"bad_words": ["yes", "no"]}],
    ids=lambda fields: next(iter(fields)),
)
def test_constraints_that_leave_no_token_are_the_request_s_fault(
    service: VllmService, fields: dict[str, Any]
) -> None:
    fields = {**fields, "structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 40}
    for path in (COMPLETION, CHAT):
        answer = send(service, path, **fields)
        if answer.status_code != 200:  # some leave one after all
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == "structured_outputs"
        streamed = send(service, path, **fields, stream=True).text
        assert "server_error" not in streamed
        assert answer.status_code == 200 or "leave no token to choose" in streamed
    refused = send(service, COMPLETION, **{**fields, "allowed_token_ids": [5]})
    assert "leave no token to choose" in refused.text
    inputs = {"text": "x", **fields, "allowed_token_ids": [5]}
    answer = service.http.post("/v1/infer", json={"model": "tiny", "inputs": inputs})
    assert answer.status_code == 400, answer.text
    assert send(service, COMPLETION, max_tokens=2).status_code == 200


def test_other_forms_of_a_request_are_refused_too(service: VllmService) -> None:
    answer = send(service, MESSAGES, stop_sequences=[str(i) for i in range(99)])
    assert answer.status_code == 400
    assert "serving.limits.max_stop_strings" in answer.text
    inputs = {"text": "x", "n": 2000, "max_new_tokens": 2}
    answer = service.http.post("/v1/infer", json={"model": "tiny", "inputs": inputs})
    assert answer.status_code == 400
    assert "serving.limits.max_n" in answer.text
    for raw in (
        b'{"model": "tiny", "prompt": "x", "n": 1, "n": 2000}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "x", "vllm_xargs": {"a": 1' + b"0" * 40 + b"}}",
        b'{"model": "tiny", "prompt": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ):
        headers = {"content-type": "application/json"}
        answer = service.http.post(COMPLETION, content=raw, headers=headers)
        assert answer.status_code == 400, raw[:80]
        assert "message" in answer.json()["error"]


def test_what_is_within_the_limits_is_answered(service: VllmService) -> None:
    assert len(send(service, COMPLETION, n=4, prompt=["a", "b"]).json()["choices"]) == 8
    for path in (COMPLETION, CHAT, RESPONSES, MESSAGES):
        assert send(service, path).status_code == 200
    limits = service.http.get("/v1/models/tiny").json()["card"]["limits"]
    assert limits["max_n"] == 32


WRONG: list[dict[str, Any]] = [
    {"json": {"type": "foo"}},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    {"json": {"$ref": "#/nope"}},
    {"json": [1]},
    {"json": ""},
    {"regex": "(("},
    {"regex": "a\x00"},
    {"regex": "|".join(f"w{i}" for i in range(100_000))},
    {"choice": []},
    {"choice": [1]},
    {"grammar": "root ::= a\na ::= b\nb ::= a"},
    {"grammar": "root ::= nosuch"},
    {"grammar": 'start: "a" nosuch'},
    {"grammar": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000},
    {"structural_tag": "nonsense"},
    {"structural_tag": "{}"},
    {"json_object": False},
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_wrong_grammar_is_a_bad_request(service: VllmService, stream: bool) -> None:
    for outputs in WRONG:
        for path in (COMPLETION, CHAT):
            answer = send(service, path, structured_outputs=outputs, stream=stream)
            assert answer.status_code == 400, (str(outputs)[:80], answer.text[:300])
            assert answer.json()["error"]["message"]
    assert timed(service, choice=["a", "b"])[0] == 200


def test_a_wrong_grammar_is_a_bad_request_in_every_field(service: VllmService) -> None:
    schema = {"type": "foo"}
    chat = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    form = {"format": {"type": "json_schema", "name": "a", "schema": schema}}
    answers = [
        send(service, CHAT, response_format=chat),
        send(service, COMPLETION, response_format=chat),
        send(service, RESPONSES, text=form),
        send(service, RESPONSES, text=form, stream=True),
        send(service, MESSAGES, output_config=form),
    ]
    inputs = {"text": "x", "structured_outputs": {"json": schema}}
    answers.append(service.http.post("/v1/infer", json={"model": "tiny", "inputs": inputs}))
    for answer in answers:
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("path", [COMPLETION, CHAT])
def test_what_the_engine_refuses_in_a_stream_is_a_bad_request_too(
    service: VllmService, path: str
) -> None:
    for fields in ({"logit_bias": {"99999999": 1}}, {"stop_token_ids": [99_999_999]}):
        answer = send(service, path, stream=True, **fields)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]
    answer = send(service, path, stream=True)
    assert answer.status_code == 200
    assert answer.text.rstrip().endswith("data: [DONE]")


LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tools_that_bind_the_answer_are_checked_like_schemas(
    service: VllmService, stream: bool
) -> None:
    def call(schema: Any) -> httpx.Response:
        function = {"name": "f", "parameters": schema, "strict": True}
        tool = {"type": "function", "function": function}
        return send(service, CHAT, tools=[tool], tool_choice="required", stream=stream)

    assert call({"type": "object", "properties": {"a": {"type": "integer"}}}).status_code == 200
    answer = call(wide(20_000))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
    assert "serving.limits.max_schema_bytes" in answer.text
    for schema in (LOOP, {"type": "foo"}):
        answer = call(schema)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


HOSTILE: dict[str, dict[str, Any]] = {
    "5,000 properties": {"json": wide(5000)},
    "1,500 properties": {"json": wide(1500)},
    "alternatives": {"json": {"anyOf": [{**wide(30), "title": str(i)} for i in range(60)]}},
    "definitions": {"json": doubling(60)},
    "long text": {"json": {"type": "string", "maxLength": 10**6}},
    "pattern": {"regex": ".*" * 3000},
    "optional parts": {"grammar": "root ::= (" + '"a"? ' * 3000 + ")"},
    "choices": {"choice": [f"c{i}" for i in range(9000)]},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_large_grammar_holds_up_no_other_request(service: VllmService, kind: str) -> None:
    alone = timed(service, choice=["alone", kind])[1]
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(timed, service, **HOSTILE[kind])
        time.sleep(0.5)
        for number in range(3):
            status, seconds = timed(service, choice=["beside", kind, str(number)])
            assert status == 200
            assert seconds < SLOWED_S + 2 * alone
            assert send(service, COMPLETION).status_code == 200
        assert slow.result()[0] in (200, 400)


def test_ordinary_schemas_give_valid_answers(service: VllmService) -> None:
    whole = 0
    for seed in range(25):
        schema = ordinary(seed)
        answer = send(
            service,
            CHAT,
            max_tokens=1500,
            temperature=1,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        )
        assert answer.status_code == 200, (seed, answer.text)
        choice = answer.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            whole += 1
            jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    assert whole >= 3, "the test saw too few whole answers"


def test_hostile_requests_leave_the_model_as_it_was(service: VllmService) -> None:
    before = service.http.get("/v1/models/tiny").json()
    with ThreadPoolExecutor(4) as pool:
        for status, seconds in pool.map(lambda seed: timed(service, **hostile(seed)), range(60)):
            assert status in (200, 400, 429), status
            assert seconds < 60
    wait_until(lambda: service.num_running() == 0, 60)
    assert timed(service, json=ordinary(1))[0] == 200
    assert service.http.get("/v1/models/tiny").json()["card"] == before["card"]
