"""Without a router a client that comes as it was told finds a place, and a newcomer does not."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.promises import KEPT_SHARE, MAX_PROMISES
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES

CHAT = "/v1/chat/completions"
BODY = b'{"model": "m"}'
TOLD, NEW = "127.0.0.2", "127.0.0.3"
HELD = KEPT_SHARE
"""One place is kept."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with running(tmp_path) as proxy:
        with proxy.over_socket() as client:
            client.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, {'m': HELD})}")
        proxy.model.released.clear()
        yield proxy
        proxy.model.released.set()


def ask(proxy: Proxy, address: str, path: str = CHAT) -> httpx.Response:
    """Asks on a new connection."""
    transport = httpx.HTTPTransport(local_address=address)
    headers = {"content-type": "application/json"}
    with httpx.Client(transport=transport, timeout=LIMIT_S) as client:
        answer = client.post(f"{proxy.url}{path}", content=BODY, headers=headers)
    time.sleep(0.05)  # HAProxy counts a request for a moment longer than its client sees it
    return answer


class Held:
    """Requests that the model does not answer yet."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._clients: list[socket.socket] = []

    def add(self, number: int) -> None:
        seen = len(self._proxy.model.paths)
        for _ in range(number):
            client = self._proxy.connect()
            self._clients.append(client)
            head = f"POST {CHAT}?/wait HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
        deadline = time.monotonic() + LIMIT_S
        while len(self._proxy.model.paths) < seen + number:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def drop(self) -> None:
        """Has one client leave, and waits until HAProxy has seen it."""
        self._clients.pop().close()
        time.sleep(0.3)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.mark.parametrize("path", [CHAT, f"/models/m{CHAT}"])
def test_a_place_is_kept_for_who_was_told_to_come(proxy: Proxy, path: str) -> None:
    with contextlib.closing(Held(proxy)) as held:
        held.add(HELD)
        refused = ask(proxy, TOLD, path)
        assert refused.status_code == 429
        due_s = time.monotonic() + int(refused.headers["retry-after"])
        held.drop()
        for address in (CHAT, path):
            assert ask(proxy, NEW, address).status_code == 429  # there is a place, and it is kept
        time.sleep(max(0.0, due_s - time.monotonic()))
        assert ask(proxy, TOLD, path).status_code == 200
        assert ask(proxy, TOLD, path).status_code == 429  # it was told once


def test_who_comes_before_it_was_told_is_refused(proxy: Proxy) -> None:
    with contextlib.closing(Held(proxy)) as held:
        held.add(HELD)
        first = [ask(proxy, TOLD).headers["retry-after"] for _ in range(2)]
        due_s = time.monotonic() + int(first[0])
        held.drop()
        assert ask(proxy, TOLD).status_code == 429
        time.sleep(max(0.0, due_s - time.monotonic()))
        assert [ask(proxy, TOLD).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_one_that_asks_all_the_time_has_few_promises(proxy: Proxy) -> None:
    with contextlib.closing(Held(proxy)) as held:
        held.add(HELD)
        first = [ask(proxy, TOLD).headers["retry-after"] for _ in range(2 * MAX_PROMISES)]
        due_s = time.monotonic() + int(first[-1])
        held.drop()
        time.sleep(max(0.0, due_s - time.monotonic()))
        statuses = [ask(proxy, TOLD).status_code for _ in range(MAX_PROMISES + 2)]
        assert statuses == [200] * MAX_PROMISES + [429] * 2


def test_all_places_are_for_all_where_nothing_was_promised(proxy: Proxy) -> None:
    with contextlib.closing(Held(proxy)) as held:
        held.add(HELD - 1)
        assert [ask(proxy, NEW).status_code for _ in range(3)] == [200] * 3
        held.add(1)
        assert ask(proxy, NEW).status_code == 429


@pytest.mark.long("waits until a promise is over")
def test_nothing_is_kept_when_all_were_due(proxy: Proxy) -> None:
    with contextlib.closing(Held(proxy)) as held:
        held.add(HELD)
        told_s = int(ask(proxy, TOLD).headers["retry-after"])
        held.drop()
        time.sleep(told_s + 1.5)
        assert ask(proxy, NEW).status_code == 200


@contextlib.contextmanager
def connections(proxy: Proxy, number: int) -> Iterator[list[httpx.Client]]:
    """Yields clients of one address, each with a connection of its own that it keeps."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                httpx.Client(
                    base_url=proxy.url,
                    transport=httpx.HTTPTransport(local_address=TOLD),
                    headers={"content-type": "application/json"},
                    timeout=LIMIT_S,
                )
            )
            for _ in range(number)
        ]


def test_each_connection_of_an_address_has_its_own_promise(proxy: Proxy) -> None:
    """An address alone has fewer."""
    number = MAX_PROMISES + 2
    with contextlib.closing(Held(proxy)) as held, connections(proxy, number) as clients:
        held.add(HELD)
        waits = [client.post(CHAT, content=BODY).headers["retry-after"] for client in clients]
        due_s = time.monotonic() + int(waits[-1])
        held.drop()
        time.sleep(max(0.0, due_s - time.monotonic()))
        for client in clients:
            assert client.post(CHAT, content=BODY).status_code == 200
            time.sleep(0.05)  # HAProxy counts a request for a moment longer than its client sees it


def test_a_connection_does_not_take_what_another_one_was_told(proxy: Proxy) -> None:
    with contextlib.closing(Held(proxy)) as held, connections(proxy, 2) as (told, other):
        held.add(HELD)
        assert other.post(CHAT, content=BODY).status_code == 429
        time.sleep(1.1)  # its own promise is due, and of no use: the model is full
        refused = told.post(CHAT, content=BODY)
        due_s = time.monotonic() + int(refused.headers["retry-after"])
        assert other.post(CHAT, content=BODY).status_code == 429
        held.drop()
        time.sleep(max(0.0, due_s - time.monotonic() - 0.2))
        assert other.post(CHAT, content=BODY).status_code == 429
        time.sleep(max(0.0, due_s - time.monotonic()))
        assert told.post(CHAT, content=BODY).status_code == 200


def test_a_connection_that_was_let_in_has_no_promise_any_more(proxy: Proxy) -> None:
    with (
        contextlib.closing(Held(proxy)) as held,
        contextlib.closing(Held(proxy)) as later,
        connections(proxy, 1) as (told,),
    ):
        held.add(HELD)
        due_s = time.monotonic() + int(told.post(CHAT, content=BODY).headers["retry-after"])
        held.drop()
        held.drop()
        assert told.post(CHAT, content=BODY).status_code == 200  # two are left, and one is kept
        later.add(1)
        time.sleep(max(0.0, due_s - time.monotonic()))
        assert told.post(CHAT, content=BODY).status_code == 429
