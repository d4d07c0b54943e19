"""A model's own address is refused by HAProxy where the model is full, as the direct way is."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.queues import BUFFER_BYTES, MAX_BODY_BYTES
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.envelope import has_shape
from truthgpt_serve.queue_full import PLACE_HEADER

HELD = 2
CHAT = "/v1/chat/completions"
BODY = b'{"model": "m"}'
ADDRESSES = (CHAT, f"/models/m{CHAT}")
JSON = {"content-type": "application/json"}
PAGE = "http://localhost:3000"


@pytest.fixture(scope="module")
def running_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("q")) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy) -> Iterator[Proxy]:
    tell(running_proxy, HELD)
    running_proxy.model.released.clear()
    yield running_proxy
    running_proxy.model.released.set()
    time.sleep(0.3)  # HAProxy sees that the clients have left


def tell(proxy: Proxy, held: int) -> None:
    with proxy.over_socket() as client:
        client.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, {'m': held})}")


@contextlib.contextmanager
def sending(proxy: Proxy, number: int, *parts: bytes) -> Iterator[list[socket.socket]]:
    """Has clients send one request each, or a part of it, and waits until the model has them."""
    seen = len(proxy.model.paths)
    with contextlib.ExitStack() as clients:
        sockets = [clients.enter_context(proxy.connect()) for _ in range(number)]
        for client in sockets:
            for part in parts:
                client.sendall(part)
        deadline = time.monotonic() + LIMIT_S
        while len(proxy.model.paths) < seen + number:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield sockets


def head(*more: str, address: str = f"/models/m{CHAT}?/wait") -> bytes:
    lines = [f"POST {address} HTTP/1.1", "host: x", "content-type: application/json", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def whole(address: str = f"/models/m{CHAT}?/wait") -> bytes:
    return head(f"content-length: {len(BODY)}", address=address) + BODY


def ask(proxy: Proxy, address: str, method: str = "POST", **headers: str) -> httpx.Response:
    given = {"content-type": "application/json", **headers}
    content = BODY if method == "POST" else None
    return httpx.request(
        method, f"{proxy.url}{address}", content=content, headers=given, timeout=LIMIT_S
    )


@pytest.mark.parametrize("held", [f"{address}?/wait" for address in ADDRESSES])
def test_both_addresses_have_one_queue(proxy: Proxy, held: str) -> None:
    with sending(proxy, HELD, whole(held)):
        refusals = [ask(proxy, address, **{"x-request-id": "own"}) for address in ADDRESSES]
    for refused in refusals:
        assert refused.status_code == 429
        assert refused.headers["x-request-id"] == "own"
        assert refused.headers["retry-after"] == "1"
        assert f"model 'm' is full: {HELD} requests" in refused.json()["error"]["message"]
    assert refusals[0].json() == refusals[1].json()


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/messages", "/v1/messages/count_tokens", "/v2/models/m/infer"]
)
def test_each_api_has_its_form(proxy: Proxy, path: str) -> None:
    with sending(proxy, HELD, whole()):
        refused = ask(proxy, f"/models/m{path}")
    assert refused.status_code == OverloadedError.status
    assert has_shape(refused.json(), path)
    assert len(refused.headers["x-request-id"]) == 36
    assert "model 'm' is full" in json.dumps(refused.json())


def test_what_makes_no_work_is_not_refused(proxy: Proxy) -> None:
    with sending(proxy, HELD, whole()):
        assert ask(proxy, "/models/m/health", "GET").status_code == 200
        assert ask(proxy, "/models/m/health", "HEAD").status_code == 200
        assert ask(proxy, "/models/m/v1/responses/resp_1/cancel").status_code == 200
        for path in ("/health", "/cancel", "/v1/responses/cancel/resp_1"):
            assert ask(proxy, f"/models/m{path}").status_code == 429
        assert ask(proxy, "/models/mm/health").json() == {"by": "router"}


def test_pages_may_read_a_refusal(proxy: Proxy) -> None:
    with sending(proxy, HELD, whole()):
        refused = ask(proxy, ADDRESSES[1], origin=PAGE)
        assert refused.status_code == 429
        assert refused.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-origin" not in ask(proxy, ADDRESSES[1]).headers


def test_a_model_of_which_nothing_is_known_has_all_requests(proxy: Proxy) -> None:
    with proxy.over_socket() as client:
        client.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, {})}")
    with sending(proxy, HELD + 1, whole()):
        pass


LONG = BUFFER_BYTES * 4
PIECE = b"%x\r\n%b\r\n" % (1000, b"x" * 1000)
NOT_WHOLE = {
    "read": [head("transfer-encoding: chunked").replace(b"POST", b"GET")],
    "head": [head("transfer-encoding: chunked").replace(b"POST", b"HEAD")],
    "a length": [head(f"content-length: {LONG}"), b"x" * (BUFFER_BYTES + 1000)],
    "small chunks": [head("transfer-encoding: chunked"), PIECE * (BUFFER_BYTES // 1000 + 1)],
    "one chunk": [
        head("transfer-encoding: chunked"), b"%x\r\n" % LONG, b"x" * (BUFFER_BYTES + 1000),
    ],
    "a large head": [
        head(f"content-length: {MAX_BODY_BYTES}", *(f"x-{at}: {'x' * 7000}" for at in range(7))),
        b"x" * (MAX_BODY_BYTES - 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("parts", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_bodies_on_the_way_take_no_place(proxy: Proxy, parts: list[bytes]) -> None:
    with sending(proxy, 4 * HELD, *parts):
        proxy.model.released.set()
        for address in ADDRESSES:
            assert ask(proxy, address).json() == {"by": "model"}
        proxy.model.released.clear()
        with sending(proxy, HELD, whole()):
            for address in ADDRESSES:
                assert ask(proxy, address).status_code == 429


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /models/m/health?/wait HTTP/1.1\r\nhost: x\r\n\r\n",
        whole("/models/m/v1/responses/resp_1/cancel?/wait"),
    ],
    ids=["a read", "a cancel"],
)
def test_what_makes_no_work_takes_no_place(proxy: Proxy, request_: bytes) -> None:
    with sending(proxy, 2 * HELD, request_):
        proxy.model.released.set()
        for address in ADDRESSES:
            assert ask(proxy, address).json() == {"by": "model"}


def test_a_body_on_the_way_is_the_models_to_refuse(proxy: Proxy) -> None:
    with sending(proxy, HELD, whole()), sending(proxy, 1, *NOT_WHOLE["a length"]):
        assert ask(proxy, ADDRESSES[1]).status_code == 429


def test_a_direct_body_on_the_way_is_the_models_to_refuse(proxy: Proxy) -> None:
    large = [f"x-{at}: {'x' * 7000}" for at in range(7)]
    begun = head(f"content-length: {MAX_BODY_BYTES}", *large, address=f"{CHAT}?/wait")
    body = b'{"model": "m", "user": "'.ljust(MAX_BODY_BYTES - 1, b"x")
    with sending(proxy, HELD, whole()), sending(proxy, 1, begun, body):
        assert ask(proxy, ADDRESSES[0]).status_code == 429


def test_http_2_is_not_spoken(proxy: Proxy) -> None:
    """Its streams may be answered and stay, for as long as the client opens no window."""
    with proxy.connect() as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("size", [len(BODY), 40_000])
def test_a_whole_body_in_chunks_takes_a_place(proxy: Proxy, size: int) -> None:
    body = BODY.ljust(size)
    chunked = head("transfer-encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    with sending(proxy, HELD, chunked):
        assert ask(proxy, ADDRESSES[1]).status_code == 429


def test_a_long_body_of_a_router_takes_no_place(proxy: Proxy, tmp_path: Path) -> None:
    seen = len(proxy.model.paths)
    with contextlib.ExitStack() as clients:
        for _ in range(2 * HELD):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(proxy.folder / "hop.sock"))
            client.sendall(head(f"content-length: {LONG}") + b"x")
        deadline = time.monotonic() + LIMIT_S
        while len(proxy.model.paths) < seen + 2 * HELD:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        proxy.model.released.set()
        assert ask(proxy, ADDRESSES[0]).json() == {"by": "model"}


@pytest.mark.parametrize(
    ("path", "status"), [("/large", 200), ("/flood", 429)], ids=["whole", "endless"]
)
@pytest.mark.parametrize("way", ADDRESSES, ids=["direct", "own"])
def test_a_whole_answer_that_nobody_reads_takes_no_place(
    proxy: Proxy, way: str, path: str, status: int
) -> None:
    with sending(proxy, HELD, whole(f"{way}?{path}")) as clients:
        for client in clients:
            assert client.recv(1)  # the head has come
        time.sleep(0.2)
        assert {ask(proxy, address).status_code for address in ADDRESSES} == {status}
    deadline = time.monotonic() + LIMIT_S
    while ask(proxy, ADDRESSES[1]).status_code != 200:  # HAProxy sees that they have left
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with sending(proxy, HELD, whole()):  # none is subtracted any more
        assert {ask(proxy, address).status_code for address in ADDRESSES} == {429}


def test_a_refusal_that_is_held_takes_no_place(proxy: Proxy) -> None:
    tell(proxy, 1)
    with proxy.connect() as early, sending(proxy, 1, whole()) as (held,):
        early.sendall(whole())
        assert b" 429 " in early.recv(4096)
        early.sendall(whole())  # at once: this answer is held
        proxy.model.released.set()
        assert b" 200 " in held.recv(4096)
        time.sleep(0.3)  # HAProxy counts a request for a moment longer than its client sees it
        assert ask(proxy, CHAT).status_code == 200
        early.setblocking(False)
        with pytest.raises(BlockingIOError):
            early.recv(1)


def refused(proxy: Proxy) -> set[str]:
    """Returns what clients of a model that is full were told, while others are answered."""
    told: set[str] = set()
    until_s = time.monotonic() + 2

    def go_on() -> None:
        while time.monotonic() < until_s:
            with proxy.connect() as client:
                client.sendall(whole(f"/models/m{CHAT}"))
                answer = client.recv(4096).decode().lower()
            told.update(re.findall(r"retry-after: (\d+)", answer))

    with ThreadPoolExecutor(16) as clients:
        for run in [clients.submit(go_on) for _ in range(16)]:
            run.result(LIMIT_S)
    return told


def test_what_one_thread_of_haproxy_notes_is_not_later_than_now_for_another(
    proxy: Proxy,
) -> None:
    """Their clocks differ by a moment."""
    assert refused(proxy) <= {"1"}


def test_a_place_is_not_learned_while_no_replica_is_up(tmp_path: Path) -> None:
    """It would be divided by their number."""
    with running(tmp_path) as proxy, proxy.over_port() as client:
        tell(proxy, HELD)
        proxy.model.more_headers = {PLACE_HEADER: "20000"}
        with sending(proxy, 1, whole()) as (held,):
            proxy.model.refuse()
            deadline = time.monotonic() + LIMIT_S
            while "router" not in client.post(CHAT, content=BODY, headers=JSON).text:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            proxy.model.released.set()
            assert b"200" in held.recv(4096)
        tell(proxy, 0)
        answer = client.post(f"/models/m{CHAT}", content=BODY, headers=JSON)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
