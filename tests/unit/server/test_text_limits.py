"""What one request may ask for, in every spelling that a lenient reader of JSON accepts."""

from __future__ import annotations

import json
import timeit
from typing import Any

import pytest

from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import RequestError
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.server.text_limits import TextLimits

CHAT, COMPLETION, EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES = "/v1/responses"
DEFAULTS = TextLimitsSection()


def limits(**changed: Any) -> TextLimits:
    return TextLimits(TextLimitsSection(**changed), max_model_len=1024, vocab_size=2000)


def check(body: dict[str, Any], path: str = COMPLETION, **changed: Any) -> None:
    raw = json.dumps(body).encode()
    limits(**changed).check(path, raw, parse_object(raw))


def user(count: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x"}] * count


MOST = "max_total_tokens"
LOGPROBS = ("logprobs", MOST)
TOO_MUCH: list[tuple[str, dict[str, Any], str, str]] = [
    (COMPLETION, {"n": 33}, "n", "max_n"),
    (COMPLETION, {"n": "2000"}, "n", "max_n"),
    (COMPLETION, {"n": " 2_000 "}, "n", "max_n"),
    (COMPLETION, {"n": "2e3"}, "n", "max_n"),
    (COMPLETION, {"n": 2000.0}, "n", "max_n"),
    (COMPLETION, {"best_of": 33}, "best_of", "max_n"),
    (COMPLETION, {"use_beam_search": True, "n": 33}, "n", "max_n"),
    (COMPLETION, {"prompt": ["x"] * 129}, "prompt", "max_prompts"),
    (COMPLETION, {"prompt": [[1]] * 129}, "prompt", "max_prompts"),
    (CHAT, {"messages": [user(1)] * 129}, "messages", "max_prompts"),
    (CHAT, {"messages": user(8193)}, "messages", "max_messages"),
    (CHAT, {"messages": [user(8193)]}, "messages[0]", "max_messages"),
    (CHAT, {"messages": [{"content": [{}] * 8193}]}, "messages", "max_messages"),
    (RESPONSES, {"input": user(8193)}, "input", "max_messages"),
    ("/v1/messages", {"system": [{}] * 8193}, "system", "max_messages"),
    (EMBEDDING, {"input": ["x"] * 2049}, "input", "max_inputs"),
    ("/pooling", {"input": [[1]] * 2049}, "input", "max_inputs"),
    ("/v1/rerank", {"documents": ["x"] * 2049}, "documents", "max_inputs"),
    ("/v1/score", {"text_2": ["x"] * 2049}, "text_2", "max_inputs"),
    ("/score", {"queries": ["x"] * 2049}, "queries", "max_inputs"),
    (COMPLETION, {"logprobs": 21}, "logprobs", "max_logprobs"),
    (COMPLETION, {"logprobs": -1}, "logprobs", "max_logprobs"),
    (COMPLETION, {"prompt_logprobs": "21"}, "prompt_logprobs", "max_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "max_logprobs"),
    (COMPLETION, {"prompt": [[1] * 999] * 128, "logprobs": 20, "echo": True}, *LOGPROBS),
    (COMPLETION, {"prompt": ["x" * 4000] * 128, "prompt_logprobs": 9}, "prompt_logprobs", MOST),
    (COMPLETION, {"prompt": ["x"] * 128, "n": 32, "logprobs": 20, "max_tokens": 16}, *LOGPROBS),
    (COMPLETION, {"stop": ["x"] * 17}, "stop", "max_stop_strings"),
    (COMPLETION, {"stop_token_ids": [1] * 17}, "stop_token_ids", "max_stop_strings"),
    ("/v1/messages", {"stop_sequences": ["x"] * 17}, "stop_sequences", "max_stop_strings"),
    (COMPLETION, {"bad_words": ["x"] * 1025}, "bad_words", "max_logit_bias"),
    (
        COMPLETION,
        {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)},
        "logit_bias",
        "max_logit_bias",
    ),
    (CHAT, {"tools": [{}] * 513}, "tools", "max_tools"),
    (COMPLETION, {"n": 3, "max_tokens": 100_000, "prompt": ["x"] * 100}, "max_tokens", "max_total"),
    (CHAT, {"n": 32, "max_completion_tokens": 1024}, "max_completion_tokens", "max_total"),
    (CHAT, {"n": 32}, "n", "max_total"),
    (COMPLETION, {"prompt": ["x"] * 128, "max_tokens": None}, "n", "max_total"),
    ("/inference/v1/generate", {"sampling_params": {"n": 33}}, "sampling_params.n", "max_n"),
]


@pytest.mark.parametrize(("path", "body", "param", "key"), TOO_MUCH)
def test_too_much_names_the_field_the_value_and_the_limit(
    path: str, body: dict[str, Any], param: str, key: str
) -> None:
    changed = {"max_total_tokens": 30_000} if key == "max_total" else {}
    with pytest.raises(RequestError) as caught:
        check(body, path, **changed)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert f"serving.limits.{key}" in caught.value.message
    assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETION, {"n": 32, "max_tokens": 5}),
        (COMPLETION, {"prompt": ["x"] * 128, "max_tokens": 16}),
        (COMPLETION, {"prompt": ["x"] * 128, "n": 32}),
        (COMPLETION, {"prompt": [[1] * 999] * 128, "echo": True, "logprobs": 1}),
        (COMPLETION, {"prompt": [1] * 99999, "echo": True, "logprobs": 20}),
        (CHAT, {"n": 32, "logprobs": False, "top_logprobs": 20, "max_tokens": 1024}),
        (COMPLETION, {"prompt": list(range(5000))}),
        (EMBEDDING, {"input": list(range(5000))}),
        (EMBEDDING, {"input": ["x"] * 2048}),
        (RESPONSES, {"input": user(3000)}),
        (CHAT, {"messages": user(8192), "max_tokens": 10**9}),
        (COMPLETION, {"logprobs": 20, "stop": "x" * 100}),
        (CHAT, {"logprobs": True, "n": None, "stop": None, "tools": None}),
        (COMPLETION, {"n": "many", "logprobs": [], "stop": {}, "max_tokens": "x"}),
        (COMPLETION, {"prompt": "1" * 500 + "[" * 500}),
        (COMPLETION, {"seed": 2**63 - 1, "a": -(2**63)}),
    ],
)
def test_what_is_within_the_limits_passes(path: str, body: dict[str, Any]) -> None:
    check(body, path)


def test_limits_come_from_the_configuration() -> None:
    check({"n": 40, "max_tokens": 2}, max_n=40)
    with pytest.raises(RequestError, match="at most 40"):
        check({"n": 41}, max_n=40)
    check({"logprobs": -1}, max_logprobs=2000)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**400, {"a": [{"b": 10**30}]}])
def test_an_integer_that_nothing_can_carry_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="more than 64 bits") as caught:
        check({"vllm_xargs": value})
    assert caught.value.param == "vllm_xargs"


def test_a_deep_body_is_refused_and_a_long_one_is_not() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(RequestError, match="nested deeper than 200"):
        check({"messages": deep})
    check({"messages": [{"content": [{"type": "text", "text": "x"}]}] * 1000})


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 6000 + b"}",
        b'{"prompt": "\\ud800"}',
        '{"n": 2000}'.encode("utf-16"),
        b"[1]",
        b'{"n": 1}}',
    ],
)
def test_a_body_that_is_no_sound_json_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError):
        parse_object(raw)


def test_the_last_of_two_keys_counts_as_it_does_for_the_engine() -> None:
    raw = b'{"n": 1, "n": 2000}'
    assert json.loads(raw) == parse_object(raw)
    with pytest.raises(RequestError):
        limits().check(COMPLETION, raw, parse_object(raw))


def test_the_check_costs_little() -> None:
    message = {"role": "user", "content": "word " * 40}
    body = {"model": "m", "messages": [message] * 9, "stop": ["a"], "n": 1, "max_tokens": 9}
    raw, limit = json.dumps(body).encode(), limits()
    assert 2000 < len(raw) < 2500

    def once() -> None:
        limit.check(CHAT, raw, parse_object(raw))

    # About 15 µs; the bound leaves room for a busy machine.
    assert min(timeit.repeat(once, number=200, repeat=20)) / 200 < 100e-6


def test_the_card_shows_the_limits_of_models_that_have_them() -> None:
    from truthgpt_serve.app import model

    shown = model({"run_name": "x", "model": {"family": "echo"}})
    options = shown._bound_deployment.user_config
    assert options is not None
    card = options["card"] if "card" in options else next(iter(options.values()))
    assert DEFAULTS.model_dump().items() <= card["limits"].items()
