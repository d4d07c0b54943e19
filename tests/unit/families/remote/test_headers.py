"""Requests that come back to where they began."""

from __future__ import annotations

import httpx

from deployments.remote.headers import MARK, MAX_MARKS
from tests.support.remote_servers import (
    Hosted,
    relay_to,
    relayed,
    remote_cfg,
    serve_at,
)
from truthgpt_serve.cluster.ports import free_port

BODY = {"model": "far", "messages": []}


def ask(http: httpx.Client, **headers: str) -> httpx.Response:
    return http.post("/v1/chat/completions", json=BODY, headers=headers)


def test_a_request_that_comes_back_ends() -> None:
    port = free_port()
    for way in ("/v1", "/v1/"):
        app = Hosted(remote_cfg(f"http://127.0.0.1:{port}{way}"), "far")
        with serve_at(app, port), httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            answer = ask(http)
            assert (answer.status_code, answer.json()["error"]["code"]) == (508, "loop_detected")
            assert "leads to this very service" in answer.json()["error"]["message"]
            infer = http.post("/v1/infer", json={"model": "far", "inputs": {"text": "x"}})
            assert infer.status_code == 508


def test_a_loop_over_two_applications_ends() -> None:
    ports = free_port(), free_port()
    apps = [
        Hosted(remote_cfg(f"http://127.0.0.1:{port}/v1", model=model), name)
        for port, model, name in zip(ports, ("b", "a"), ("a", "b"), strict=True)
    ]
    with (
        serve_at(apps[0], ports[1]),
        serve_at(apps[1], ports[0]),
        httpx.Client(base_url=f"http://127.0.0.1:{ports[1]}") as http,
    ):
        assert http.post("/v1/completions", json={"model": "a"}).status_code == 508


def test_a_chain_is_no_loop() -> None:
    with (
        relayed() as (first, other),
        relay_to(f"{str(first.base_url).rstrip('/')}/v1", name="farther") as http,
    ):
        answer = http.post("/v1/chat/completions", json={**BODY, "model": "farther"})
        assert answer.json()["model"] == "farther"
        assert other.last.json()["model"] == "there"
        assert other.last.header(MARK.decode())[0].count(",") == 1
        many = ",".join(f"{number:016x}" for number in range(MAX_MARKS))
        refused = ask(first, **{MARK.decode(): many})
        assert refused.status_code == 508
        assert f"relayed {MAX_MARKS} times" in refused.json()["error"]["message"]
