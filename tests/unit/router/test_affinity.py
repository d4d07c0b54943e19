"""What a router says of models, and of one request, so that a conversation stays on its replica."""

from __future__ import annotations

import json
from typing import Any

import pytest

from truthgpt_serve.cluster.haproxy.affinity import ADAPTER_HEADER, CACHE_KEY_HEADER, Affinity
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.cluster.state import ApplicationState
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.affinity import affinity_by_model, affinity_headers
from truthgpt_serve.router.bodies.request_body import RequestBody
from truthgpt_serve.router.model_entry import (
    ModelEntry,
    adapter_entries,
    alias_entries,
    model_entry,
)

KEY = CACHE_KEY_HEADER.encode()
LONG = "x" * MAX_BODY_BYTES


def entry_of(num_replicas: int, affinity: Any = "prefix") -> ModelEntry:
    limits = {"max_ongoing_requests": 4}
    card = {"affinity": affinity, "adapters": ["lo ra"], "aliases": ["org/m"], "limits": limits}
    state = ApplicationState("m", "/models/m", "RUNNING", "", num_replicas, card, 0.0)
    return model_entry(state, has_run=True)


async def receive() -> Message:
    raise AssertionError("nothing more is read")


def body_of(*pieces: bytes) -> RequestBody:
    return RequestBody([*pieces], sum(map(len, pieces)), False, receive)


@pytest.mark.parametrize(
    ("num_replicas", "affinity", "told"),
    [
        (2, "prefix", {"m": Affinity("prefix", 4)}),
        (3, "session", {"m": Affinity("session", 4)}),
        (2, "none", {}),
        (2, None, {}),  # a model of an older version
        (1, "prefix", {}),
        (0, "prefix", {}),
    ],
)
def test_models_with_several_replicas_are_told(
    num_replicas: int, affinity: str | None, told: dict[str, Affinity]
) -> None:
    entry = entry_of(num_replicas, affinity)
    entries = [entry, *adapter_entries(entry), *alias_entries(entry)]
    assert affinity_by_model(entries) == told


def test_an_adapter_is_named() -> None:
    entry = entry_of(2)
    name = (ADAPTER_HEADER.encode(), b"lo%20ra")
    assert affinity_headers(adapter_entries(entry)[0], body_of(b"{}")) == [name]
    assert affinity_headers(alias_entries(entry)[0], body_of(b"{}")) == []


@pytest.mark.parametrize("key", ["k", "é", "a b"])
def test_a_cache_key_that_the_proxy_may_not_see_is_told(key: str) -> None:
    text = json.dumps({"messages": LONG, "prompt_cache_key": key}, ensure_ascii=False).encode()
    expected = [(KEY, key.encode().hex().encode())]
    assert affinity_headers(entry_of(2), body_of(text)) == expected
    assert affinity_headers(entry_of(2), body_of(text[:50_000], text[50_000:])) == expected
    assert affinity_headers(entry_of(1), body_of(text)) == []


@pytest.mark.parametrize("value", [None, 1, "", {"a": "b"}])
def test_what_is_no_cache_key_is_not_told(value: Any) -> None:
    text = json.dumps({"messages": LONG, "prompt_cache_key": value}).encode()
    assert affinity_headers(entry_of(2), body_of(text)) == []


def test_a_long_cache_key_is_cut() -> None:
    text = json.dumps({"prompt_cache_key": LONG}).encode()
    assert affinity_headers(entry_of(2), body_of(text)) == [(KEY, b"78" * 256)]


def test_the_proxy_reads_short_bodies_itself() -> None:
    assert affinity_headers(entry_of(2), body_of(b'{"prompt_cache_key": "k"}')) == []
