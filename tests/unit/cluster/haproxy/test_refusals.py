"""Refusals of HAProxy: when they are held, and when they tell a client to come back."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, running
from truthgpt_serve.cluster.haproxy.limits import CAPACITY_HEADER, CLIENTS_VARIABLE
from truthgpt_serve.cluster.haproxy.refusals import HELD_S
from truthgpt_serve.queue_full import AHEAD_S, PLACE_HEADER, RETRY_AFTER_S

TRIES = 10


def test_the_refused_are_told_places_of_their_own(tmp_path: Path) -> None:
    """By what the last answer of any model has said."""
    with running(tmp_path) as proxy, proxy.over_socket() as routers:

        def told() -> str:
            refused = httpx.post(f"{proxy.url}/x", content=b"{}", timeout=LIMIT_S)
            assert refused.status_code == 429
            return str(refused.headers["retry-after"])

        routers.get("/-/routes", headers={CAPACITY_HEADER: "0"})
        assert [told() for _ in range(3)] == ["1", "1", "1"]
        proxy.model.more_headers = {PLACE_HEADER: "20900000"}
        assert routers.post("/models/m/x", content=b"{}").status_code == 200
        assert [told() for _ in range(2)] == [str(AHEAD_S)] * 2  # four times nothing
        proxy.router.released.clear()
        routers.get("/-/routes", headers={CAPACITY_HEADER: "1"})
        with ThreadPoolExecutor(1) as clients:
            held = clients.submit(httpx.post, f"{proxy.url}/wait", content=b"{}", timeout=LIMIT_S)
            deadline = time.monotonic() + LIMIT_S
            while "/wait" not in proxy.router.paths:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            for expected in (AHEAD_S + 21, AHEAD_S + 42, 60, 60):  # less the time that has passed
                assert expected - 5 <= int(told()) <= expected
            proxy.router.released.set()
            assert held.result(LIMIT_S).status_code == 200


def ask(client: httpx.Client) -> float:
    """Returns after how many seconds a request was refused."""
    began_s = time.monotonic()
    assert client.post("/x", content=b"{}").status_code == 429
    return time.monotonic() - began_s


@pytest.mark.long("waits for limits of time")
def test_a_refusal_is_held_for_who_asks_again_too_early(tmp_path: Path) -> None:
    with (
        running(tmp_path) as proxy,
        proxy.over_socket() as routers,
        proxy.over_port() as early,
        proxy.over_port() as patient,
    ):
        routers.get("/-/routes", headers={CAPACITY_HEADER: "0"})
        assert ask(early) < HELD_S * 0.9
        assert ask(early) >= HELD_S * 0.9
        assert ask(early) >= HELD_S * 0.9
        assert ask(patient) < HELD_S * 0.9
        for client in (early, patient):
            time.sleep(RETRY_AFTER_S)
            assert ask(client) < HELD_S * 0.9
        routers.get("/-/routes", headers={CAPACITY_HEADER: "9"})
        assert patient.post("/x", content=b"{}").status_code == 200


@pytest.mark.long("waits for limits of time")
def test_refusals_are_held_only_while_there_are_connections_to_spare(tmp_path: Path) -> None:
    with (
        running(tmp_path, env={CLIENTS_VARIABLE: "128"}) as proxy,
        contextlib.ExitStack() as stack,
        proxy.over_socket() as routers,
        proxy.over_port() as client,
    ):
        routers.get("/-/routes", headers={CAPACITY_HEADER: "0"})
        ask(client)
        assert ask(client) >= HELD_S * 0.9
        for _ in range(110):
            stack.enter_context(proxy.connect())
        assert min(ask(client) for _ in range(5)) < HELD_S * 0.9
