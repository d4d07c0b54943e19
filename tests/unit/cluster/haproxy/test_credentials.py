"""One API key with very many requests leaves places of a model to the others."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.credentials import keyed_news
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES

HELD = 8
SHARE = HELD // 2
CHAT = "/v1/chat/completions"
BODY = b'{"model": "m"}'
ADDRESSES = (CHAT, f"/models/m{CHAT}")
BAD, GOOD = {"authorization": "Bearer tgpt-bad"}, {"x-api-key": "tgpt-good"}


@pytest.fixture(scope="module")
def running_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("q")) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy) -> Iterator[Proxy]:
    tell(running_proxy, "m")
    running_proxy.model.released.clear()
    yield running_proxy
    running_proxy.model.released.set()
    time.sleep(0.3)  # HAProxy sees that the clients have left


def tell(proxy: Proxy, *keyed: str) -> None:
    query = news_query(MAX_BODY_BYTES, {"m": HELD}, keyed_news(keyed))
    with proxy.over_socket() as client:
        client.get(f"{NEWS_PATH}?{query}")


def write(address: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return (
        f"POST {address} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n{''.join(lines)}\r\n"
    ).encode() + BODY


@contextlib.contextmanager
def sending(
    proxy: Proxy,
    number: int,
    headers: Mapping[str, str],
    address: str = f"{CHAT}?/wait",
    *,
    by_router: bool = False,
) -> Iterator[list[socket.socket]]:
    """Has clients send one request each, and waits until the model has them."""
    seen = len(proxy.model.paths)
    with contextlib.ExitStack() as clients:
        sockets = []
        for _ in range(number):
            if by_router:
                client = socket.socket(socket.AF_UNIX)
                client.connect(str(proxy.folder / "hop.sock"))
            else:
                client = proxy.connect()
            sockets.append(clients.enter_context(client))
            client.sendall(write(address, headers))
        deadline = time.monotonic() + LIMIT_S
        while len(proxy.model.paths) < seen + number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield sockets


def ask(proxy: Proxy, headers: Mapping[str, str], address: str = CHAT) -> httpx.Response:
    given = {"content-type": "application/json", **headers}
    answer = httpx.post(f"{proxy.url}{address}", content=BODY, headers=given, timeout=LIMIT_S)
    time.sleep(0.05)  # HAProxy counts a request for a moment longer than its client sees it
    return answer


def status(proxy: Proxy, headers: Mapping[str, str]) -> int:
    """Asks with headers that httpx does not send."""
    with proxy.connect() as client:
        client.sendall(write(CHAT, headers))
        return int(client.recv(4096).split()[1])


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_key_that_takes_all_it_can_leaves_as_much(proxy: Proxy, address: str) -> None:
    with sending(proxy, SHARE, BAD, f"{address}?/wait"):
        for each in ADDRESSES:
            refused = ask(proxy, BAD, each)
            assert refused.status_code == 429
            message = refused.json()["error"]["message"]
            assert f"model 'm' is full: {SHARE} requests run or wait" in message
        with sending(proxy, SHARE // 2, GOOD, f"{address}?/wait"):
            assert ask(proxy, GOOD).status_code == 429
            assert ask(proxy, {"x-api-key": "tgpt-third"}).status_code == 200
            assert ask(proxy, {}).status_code == 200


def test_what_its_requests_gave_back_it_may_have_again(proxy: Proxy) -> None:
    with sending(proxy, SHARE, BAD):
        pass
    time.sleep(0.3)  # HAProxy sees that the clients have left
    with sending(proxy, SHARE, BAD):
        assert ask(proxy, BAD).status_code == 429


def test_what_comes_by_a_router_counts(proxy: Proxy) -> None:
    with sending(proxy, SHARE, BAD, f"/models/m{CHAT}?/wait", by_router=True):
        assert ask(proxy, BAD).status_code == 429
        assert ask(proxy, GOOD).status_code == 200


@pytest.mark.parametrize(
    "written",
    [
        {"authorization": "bEARER  tgpt-bad"},
        {"authorization": "Bearer \ttgpt-bad "},
        {"x-api-key": " tgpt-bad"},
        {"authorization": "Bearer", "x-api-key": "tgpt-bad"},
        {"authorization": "", "x-api-key": "tgpt-bad"},
        BAD | {"x-api-key": "tgpt-bad"},
        BAD | {"x-api-key": ""},
    ],
)
def test_a_key_is_the_same_however_it_is_sent(proxy: Proxy, written: dict[str, str]) -> None:
    with sending(proxy, SHARE, BAD):
        assert status(proxy, written) == 429


@pytest.mark.parametrize("none", [{}, {"authorization": "Bearer "}, {"x-api-key": ""}])
def test_what_has_no_key_shares_one_part(proxy: Proxy, none: dict[str, str]) -> None:
    with sending(proxy, SHARE, {}):
        assert status(proxy, none) == 429
        assert ask(proxy, GOOD).status_code == 200


def test_a_model_without_keys_is_for_all_alike(proxy: Proxy) -> None:
    tell(proxy)
    with sending(proxy, HELD - 2, BAD):
        assert {ask(proxy, headers).status_code for headers in (BAD, GOOD)} == {200}


def test_whole_answers_that_nobody_reads_take_no_part(proxy: Proxy) -> None:
    with sending(proxy, SHARE, BAD, f"/models/m{CHAT}?/large") as clients:
        for client in clients:
            assert client.recv(1)  # the head has come
        time.sleep(0.2)
        assert ask(proxy, BAD).status_code == 200


def test_no_key_stands_in_a_table(proxy: Proxy) -> None:
    with sending(proxy, 1, BAD), socket.socket(socket.AF_UNIX) as admin:
        admin.connect(str(proxy.folder / "admin.sock"))
        admin.sendall(b"show table credentials\n")
        said = b"".join(iter(lambda: admin.recv(65536), b""))
    assert b":m" in said
    assert b"tgpt" not in said


def test_who_waits_as_told_has_a_place_of_its_keys_part(tmp_path: Path) -> None:
    """The newcomer has the same key."""
    told = httpx.HTTPTransport(local_address="127.0.0.2")
    with running(tmp_path) as proxy, httpx.Client(transport=told, base_url=proxy.url) as client:
        query = news_query(MAX_BODY_BYTES, {"m": 2 * HELD}, keyed_news(["m"]))
        with proxy.over_socket() as router:
            router.get(f"{NEWS_PATH}?{query}")
        headers = {"content-type": "application/json", **BAD}
        with sending(proxy, HELD - 1, BAD):
            with sending(proxy, 1, BAD):
                refused = client.post(CHAT, content=BODY, headers=headers)
                assert refused.status_code == 429
            time.sleep(0.3)  # HAProxy sees that the client has left
            assert ask(proxy, BAD).status_code == 429
            time.sleep(float(refused.headers["retry-after"]) - 0.3)
            assert client.post(CHAT, content=BODY, headers=headers).status_code == 200
        proxy.model.released.set()
