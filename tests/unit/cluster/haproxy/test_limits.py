"""HAProxy as the service configures it: who can take what of it, and who cannot."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.haproxy_configuration import ray_configuration
from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.configuration import UnknownConfigurationError, section
from truthgpt_serve.cluster.haproxy.limits import (
    CAPACITY_HEADER,
    CLIENTS_VARIABLE,
    HEAD_TIMEOUT_S,
    KEYED_HEADER,
    MAX_HEADERS,
    REQUESTS_VARIABLE,
    SOCKET_NAME,
    limit,
    share_out,
)
from truthgpt_serve.queue_full import CLIENT_HEADER

SHORT_S = 2
TRIES = 10
MAX_REQUESTS = 4


def quick(text: str) -> str:
    """Makes the time for a head short, as the adaptation writes it behind Ray's own lines."""
    return text.replace("timeout client 3600s", f"timeout client {SHORT_S}s")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("p")
    with running(folder, quick, env={REQUESTS_VARIABLE: str(MAX_REQUESTS)}) as proxy:
        yield proxy


def test_routers_have_a_way_of_their_own(proxy: Proxy) -> None:
    with proxy.over_socket() as client:
        assert client.post("/models/m/x", content=b"{}").json() == {"by": "model"}
        assert client.get("/-/routes").json() == {"/models/m": "m", "/": "router"}
    assert (proxy.folder / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("path", ["/x", "/models/m/x"])
def test_a_request_has_so_many_headers_on_every_way(proxy: Proxy, path: str) -> None:
    def ask(client: httpx.Client, number: int) -> httpx.Response:
        given = len(client.build_request("GET", path).headers) - 1  # HAProxy takes `connection` out
        return client.get(path, headers={f"x-{at}": "1" for at in range(number - given)})

    with proxy.over_port() as client, proxy.over_socket() as routers:
        for reached in (ask(client, MAX_HEADERS), ask(routers, MAX_HEADERS + 20)):
            assert reached.status_code in {200, 431}  # Python's own server takes no more than 100
        refused = ask(client, MAX_HEADERS + 1)
    assert refused.status_code == 400
    assert "its head is too large" in refused.json()["error"]["message"]


def test_too_many_requests_are_refused_and_reading_still_works(proxy: Proxy) -> None:
    proxy.router.released.clear()
    with ThreadPoolExecutor(MAX_REQUESTS) as clients, httpx.Client(timeout=LIMIT_S) as client:
        held = [
            clients.submit(httpx.post, f"{proxy.url}/wait", content=b"{}", timeout=LIMIT_S)
            for _ in range(MAX_REQUESTS)
        ]
        try:
            deadline = time.monotonic() + LIMIT_S
            while proxy.router.paths.count("/wait") < MAX_REQUESTS:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            refused = client.post(f"{proxy.url}/x", content=b"{}")
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            # The models themselves, which the routers ask, and their direct addresses are open.
            with proxy.over_socket() as routers:
                assert routers.post("/models/m/x", content=b"{}").status_code == 200
            assert client.post(f"{proxy.url}/models/m/x", content=b"{}").status_code == 200
        finally:
            proxy.router.released.set()
        assert {answer.result(LIMIT_S).status_code for answer in held} == {200}


def test_what_the_models_hold_bounds_requests(tmp_path: Path) -> None:
    """Routers say it; a client that says it is not believed."""
    with (
        running(tmp_path) as proxy,
        ThreadPoolExecutor(2) as clients,
        proxy.over_socket() as routers,
        httpx.Client(base_url=proxy.url, timeout=LIMIT_S) as client,
    ):
        held = [clients.submit(client.post, "/wait", content=b"{}") for _ in range(2)]
        try:
            deadline = time.monotonic() + LIMIT_S
            while len(proxy.router.paths) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            client.get("/-/routes", headers={CAPACITY_HEADER: "1"})
            assert client.post("/x", content=b"{}").status_code == 200
            routers.get("/-/routes", headers={CAPACITY_HEADER: "2"})
            refused = client.post("/x", content=b"{}")
            assert refused.status_code == 429
            assert refused.headers["access-control-allow-origin"] == "*"  # a page sees the status
            assert client.options("/x").status_code == 501  # the router's: this one has none
            assert client.get("/health").status_code == 200
            routers.get("/-/routes", headers={CAPACITY_HEADER: "3"})
            assert client.post("/x", content=b"{}").status_code == 200
        finally:
            proxy.router.released.set()
        assert {answer.result(LIMIT_S).status_code for answer in held} == {200}


def test_a_key_leaves_others_places_at_the_routers(tmp_path: Path) -> None:
    bad, good = {"authorization": "Bearer bad"}, {"x-api-key": "good"}
    with (
        running(tmp_path) as proxy,
        ThreadPoolExecutor(2) as clients,
        proxy.over_socket() as routers,
        httpx.Client(base_url=proxy.url, timeout=LIMIT_S) as client,
    ):
        routers.get("/-/routes", headers={CAPACITY_HEADER: "4", KEYED_HEADER: "1"})
        held = [clients.submit(client.post, "/wait", content=b"{}", headers=bad) for _ in range(2)]
        try:
            deadline = time.monotonic() + LIMIT_S
            while len(proxy.router.paths) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert httpx.post(f"{proxy.url}/x", content=b"{}", headers=bad).status_code == 429
            assert client.post("/x", content=b"{}", headers=good).status_code == 200
            assert client.post("/models/m/x", content=b"{}", headers=bad).status_code == 200
            routers.get("/-/routes", headers={CAPACITY_HEADER: "4", KEYED_HEADER: "0"})
            assert client.post("/x", content=b"{}", headers=bad).status_code == 200
        finally:
            proxy.router.released.set()
        assert {answer.result(LIMIT_S).status_code for answer in held} == {200}


def test_a_key_leaves_others_some_of_the_most_requests(proxy: Proxy) -> None:
    """All of them would be four."""
    bad = {"authorization": "Bearer bad"}
    proxy.router.released.clear()
    seen = len(proxy.router.paths)
    with (
        ThreadPoolExecutor(MAX_REQUESTS) as clients,
        proxy.over_socket() as routers,
        httpx.Client(base_url=proxy.url, timeout=LIMIT_S) as client,
    ):
        routers.get("/-/routes", headers={CAPACITY_HEADER: "1000", KEYED_HEADER: "1"})
        number = MAX_REQUESTS - 1
        held = [
            clients.submit(client.post, "/wait", content=b"{}", headers=bad) for _ in range(number)
        ]
        try:
            deadline = time.monotonic() + LIMIT_S
            while len(proxy.router.paths) < seen + number:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert client.post("/x", content=b"{}", headers={"x-api-key": "g"}).status_code == 200
        finally:
            proxy.router.released.set()
            routers.get("/-/routes", headers={CAPACITY_HEADER: "1000", KEYED_HEADER: "0"})
        assert {answer.result(LIMIT_S).status_code for answer in held} == {200}


def test_the_router_learns_which_connection_a_request_came_by(proxy: Proxy) -> None:
    """Of whom it is, no client can say itself."""
    with proxy.connect() as client:
        address, port = client.getsockname()[:2]
        client.sendall(
            b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
            b"x-truthgpt-client: 192.0.2.1:1\r\n\r\n{}"
        )
        assert b" 200 " in client.recv(65536)
    assert proxy.router.headers[CLIENT_HEADER] == f"{address}:{port}"


def test_connections_to_replicas_are_kept_beside_many_clients(tmp_path: Path) -> None:
    """At HAProxy's own quarter of its files it would open a new one for each request."""
    lines = ray_configuration(tmp_path, 8000, {"/": 8001}).read_text().splitlines()
    limit(lines, tmp_path, "http-router")
    assert "    tune.pool-high-fd-ratio 90" in lines[slice(*section(lines, "global"))]


def test_half_a_head_is_closed_in_time_with_408(proxy: Proxy) -> None:
    began_s = time.monotonic()
    with proxy.connect() as half, proxy.connect() as silent:
        half.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nx-a: ")
        half.settimeout(HEAD_TIMEOUT_S + LIMIT_S)
        silent.settimeout(HEAD_TIMEOUT_S + LIMIT_S)
        answer = b"".join(iter(lambda: half.recv(65536), b""))
        assert silent.recv(65536)[:13] in (b"", b"HTTP/1.1 408 ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert time.monotonic() - began_s >= SHORT_S


@pytest.mark.long("waits for limits of time")
@pytest.mark.parametrize("path", ["/x", "/models/m/x"])
@pytest.mark.parametrize("framing", ["content-length: 6", "transfer-encoding: chunked"])
def test_a_body_that_stops_is_closed_and_one_that_moves_is_not(
    proxy: Proxy, path: str, framing: str
) -> None:
    """Neither reaches a router or a model before it is whole."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode()
    body = b"6\r\naaaaaa\r\n0\r\n\r\n" if "chunked" in framing else b"aaaaaa"
    replica = proxy.router if path == "/x" else proxy.model
    # On a busy machine this test itself may pause for too long: then it begins again.
    for _ in range(TRIES):
        replica.paths.clear()
        with proxy.connect() as stopped, proxy.connect() as slow:
            stopped.sendall(head + body[:4])
            slow.sendall(head)
            if send_slowly(slow, body, lambda: not replica.paths) > SHORT_S / 2:
                continue
            assert b" 200 OK" in slow.recv(65536)
            assert replica.paths == [path]
            assert stopped.recv(65536).startswith(b"HTTP/1.1 408 ")
            return
    pytest.skip("the machine is too busy to send a body in short pieces")


def send_slowly(client: socket.socket, body: bytes, check: Callable[[], bool]) -> float:
    """Sends a body with pauses; returns the longest one in seconds."""
    longest_s, sent_s = 0.0, time.monotonic()
    # In pieces with something of the body in each: what frames a chunk does not count.
    for piece in re.findall(rb"6\r\na|a\r\n.*|a", body, re.DOTALL):
        time.sleep(SHORT_S / 4)
        assert check()
        longest_s = max(longest_s, time.monotonic() - sent_s)
        if longest_s > SHORT_S / 2:
            break
        client.sendall(piece)
        sent_s = time.monotonic()
    return longest_s


def test_half_bodies_take_no_requests_places(proxy: Proxy) -> None:
    head = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\n\r\n"
    with contextlib.ExitStack() as stack, httpx.Client(base_url=proxy.url) as client:
        for _ in range(MAX_REQUESTS * 3):
            stack.enter_context(proxy.connect()).sendall(head + b"half")
        time.sleep(SHORT_S / 4)
        assert client.post("/x", content=b"{}").status_code == 200


@pytest.mark.long("waits for limits of time")
def test_a_client_that_does_not_read_is_cut_and_a_slow_one_is_not(proxy: Proxy) -> None:
    request = b"GET /models/m/flood HTTP/1.1\r\nhost: x\r\n\r\n"
    with proxy.connect() as stopped:
        stopped.sendall(request)
        assert proxy.model.cut.wait(LIMIT_S)
    proxy.model.cut.clear()
    with proxy.connect() as slow:
        slow.sendall(request)
        end_s = time.monotonic() + SHORT_S * 2
        while time.monotonic() < end_s:
            assert slow.recv(1_000_000)
            time.sleep(SHORT_S / 10)
            assert not proxy.model.cut.is_set()


@pytest.mark.long("waits for limits of time")
def test_a_model_may_take_longer_than_a_client_may_pause(proxy: Proxy) -> None:
    proxy.model.released.clear()
    threading.Timer(SHORT_S * 1.5, proxy.model.released.set).start()
    for client in (httpx.Client(base_url=proxy.url, timeout=LIMIT_S), proxy.over_socket()):
        with client:
            assert client.post("/models/m/wait", content=b"{}").status_code == 200


@pytest.mark.long("waits for limits of time")
def test_a_busy_replica_is_not_given_up_and_a_dead_one_is(tmp_path: Path) -> None:
    """It takes connections and answers nothing, health checks included."""
    check = "inter 200ms"
    with running(tmp_path, lambda text: text.replace("inter 5s", check)) as proxy:
        proxy.model.shutdown()  # its port is still open
        time.sleep(3)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{proxy.url}/models/m/x", content=b"{}", timeout=2)
        assert not proxy.fallback.paths
        proxy.model.server_close()
        deadline = time.monotonic() + LIMIT_S
        while True:
            answer = httpx.post(f"{proxy.url}/models/m/x", content=b"{}", timeout=LIMIT_S)
            if answer.status_code == 200:
                break
            assert answer.status_code == 503
            assert time.monotonic() < deadline
        assert answer.json() == {"by": "fallback"}


def test_crowded_clients_are_told_to_close(tmp_path: Path) -> None:
    with running(tmp_path, env={CLIENTS_VARIABLE: "128"}) as proxy:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(proxy.connect()) for _ in range(20)]
            first = httpx.post(f"{proxy.url}/x", content=b"{}")
            assert "connection" not in first.headers
            idle += [stack.enter_context(proxy.connect()) for _ in range(80)]
            assert httpx.post(f"{proxy.url}/x", content=b"{}").headers["connection"] == "close"
        assert httpx.post(f"{proxy.url}/x", content=b"{}").status_code == 200


def test_idle_clients_do_not_keep_the_routers_from_the_models(tmp_path: Path) -> None:
    with (
        running(tmp_path, env={CLIENTS_VARIABLE: "128"}) as proxy,
        contextlib.ExitStack() as stack,
        proxy.over_socket() as client,
    ):
        for _ in range(200):
            stack.enter_context(proxy.connect())
        assert client.post("/models/m/x", content=b"{}").status_code == 200


@pytest.mark.parametrize(
    ("most", "num_files", "clients", "requests"),
    [(32768, 20000, 11183, 2048), (32768, 1_048_576, 32768, 2048), (4096, 1024, 480, 128)],
)
def test_connections_are_as_many_as_files_allow(
    most: int, num_files: int, clients: int, requests: int
) -> None:
    limits = share_out(most, 2048, num_files)
    assert (limits.clients, limits.requests) == (clients, requests)
    assert limits.clients + limits.requests + 2 * limits.routers < num_files
    assert limits.total > limits.clients + limits.routers
    assert limits.routers > limits.requests


def test_haproxy_starts_with_as_many_connections_as_its_files_allow(tmp_path: Path) -> None:
    """It needs files beside those of its connections, and does not start without them."""
    with running(tmp_path, env={CLIENTS_VARIABLE: "1000000"}) as proxy:
        with contextlib.ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(proxy.connect())
        assert httpx.post(f"{proxy.url}/x", content=b"{}", timeout=LIMIT_S).status_code == 200
        assert "maxconn 1000000" not in (tmp_path / "haproxy.adapted.cfg").read_text()


@pytest.mark.parametrize("missing", ["    maxconn 4096", "    bind 127.0.0.1:8000"])
def test_what_is_relied_on_must_be_there(tmp_path: Path, missing: str) -> None:
    lines = ray_configuration(tmp_path, 8000, {"/": 8001}).read_text().splitlines()
    lines.remove(missing)
    with pytest.raises(UnknownConfigurationError):
        limit(lines, tmp_path, "http-router")


def test_a_path_that_is_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    lines = ray_configuration(tmp_path, 8000, {"/": 8001}).read_text().splitlines()
    with pytest.raises(UnknownConfigurationError, match="too long for a socket"):
        limit(lines, tmp_path / ("x" * 100), "http-router")
