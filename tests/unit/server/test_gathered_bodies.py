"""A body that arrives slowly holds no place, and must hurry once others wait; over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.access.turns import Turns
from truthgpt_serve.body_limits import HURRY_BYTES
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_json
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.server import arriving_body, bounded, gathered_bodies
from truthgpt_serve.server.arriving_body import Arrivals
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.server.gathered_bodies import GatheredBodies, max_slow
from truthgpt_serve.server.read_ahead import KEPT_BYTES

HURRY_S = 0.5
WAIT_S = 20.0
MAX_SLOW, MAX_BODIES, MAX_WAITING = 2, 4, 16
OWNER = "model 'm'"
LENGTH = 4 * KEPT_BYTES


class Service:
    """A model with one place, that answers with what it got."""

    def __init__(self) -> None:
        self.queue = FairQueue(1, MAX_WAITING, OWNER)
        self.arrivals = Arrivals(MAX_SLOW, lambda: self.queue.num_waiting > 0)
        self.num_asked = 0
        turns = Turns(self._serve, self.queue, OWNER)
        self.bodies = GatheredBodies(turns, MAX_BODIES, OWNER, turns.check)
        self._app = BoundedRequests(
            self.bodies,
            "m",
            max_body_bytes=LENGTH,
            max_request_s=60,
            arrivals=self.arrivals,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, _, weight = dict(scope["headers"]).get(b"x-key", b"a").decode().partition(":")
        identity = Identity(name, weight=float(weight or 1))
        await self._app({**scope, SCOPE_KEY: identity}, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_asked += 1
        connection = Connection(scope, receive, send)
        body = await connection.read(LENGTH, WAIT_S)
        if body == b"hold":
            await asyncio.sleep(3 * HURRY_S)
        elif body == b"busy":
            await asyncio.sleep(1)
            time.sleep(3)  # no other task runs meanwhile
        await send_json(send, {"bytes": len(body), "digest": hashlib.md5(body).hexdigest()})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, str]]:
    monkeypatch.setattr(arriving_body, "HURRY_S", HURRY_S)
    monkeypatch.setattr(gathered_bodies, "SLOW_S", 0.1)
    monkeypatch.setattr(bounded, "WATCH_S", 0.05)
    monkeypatch.setattr(bounded, "LOOK_S", 0.05)
    service = Service()
    with serve_asgi(service) as url:
        yield service, url


@contextlib.contextmanager
def sending(url: str, length: int, begin: bytes, key: str = "a") -> Iterator[socket.socket]:
    """Begins a request with a body."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=WAIT_S) as client:
        head = f"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-key: {key}\r\n"
        head += f"content-length: {length}\r\n\r\n"
        client.sendall(head.encode() + begin)
        yield client


def read_answer(client: socket.socket) -> tuple[int, dict[str, object]]:
    answer = b"".join(iter(lambda: client.recv(65536), b""))
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def told(body: bytes) -> dict[str, object]:
    return {"bytes": len(body), "digest": hashlib.md5(body).hexdigest()}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("size", [2, 1000, 300_000, KEPT_BYTES, KEPT_BYTES + 1, LENGTH])
def test_a_body_that_is_still_arriving_holds_no_place(
    served: tuple[Service, str], size: int
) -> None:
    service, url = served
    body = bytes(number % 251 for number in range(size))
    half = min(size // 2, KEPT_BYTES // 2)
    with sending(url, size, body[:half]) as client:
        time.sleep(0.3)
        assert httpx.post(url, content=b"{}", timeout=WAIT_S).json() == told(b"{}")
        wait_until(lambda: service.queue.num_running == 0)
        client.sendall(body[half:])
        assert read_answer(client) == (200, told(body))
    wait_until(lambda: service.arrivals.num_slow == 0)


def test_a_large_body_is_whole_before_it_takes_a_place(served: tuple[Service, str]) -> None:
    service, url = served
    body = bytes(number % 251 for number in range(LENGTH))
    with sending(url, LENGTH, body[:-1]) as client:
        wait_until(lambda: service.bodies.spare.num_bytes > 2 * KEPT_BYTES)
        assert service.queue.num_running == 0
        client.sendall(body[-1:])
        assert read_answer(client) == (200, told(body))
    wait_until(lambda: service.bodies.spare.num_bytes == 0)


def test_what_a_body_took_is_given_back_when_its_client_leaves(
    served: tuple[Service, str],
) -> None:
    service, url = served
    with sending(url, LENGTH, b"a" * (LENGTH - 1)):
        wait_until(lambda: service.bodies.spare.num_bytes > 2 * KEPT_BYTES)
    wait_until(lambda: service.bodies.spare.num_bytes == 0)


def test_a_body_beyond_the_room_takes_a_place_and_is_read_on(
    served: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered_bodies, "SPARE_BYTES", KEPT_BYTES // 2)
    service, url = served
    body = bytes(number % 251 for number in range(3 * KEPT_BYTES))
    with sending(url, len(body), body[: 2 * KEPT_BYTES]) as client:
        wait_until(lambda: service.queue.num_running == 1)
        client.sendall(body[2 * KEPT_BYTES :])
        assert read_answer(client) == (200, told(body))


def test_a_slow_body_may_take_its_time_while_nobody_waits(served: tuple[Service, str]) -> None:
    _, url = served
    with sending(url, 4, b"a") as client:
        time.sleep(2 * HURRY_S)
        client.sendall(b"bcd")
        assert read_answer(client) == (200, told(b"abcd"))


@pytest.mark.parametrize("begin", [b"", b"a" * 100_000, b"a" * (2 * KEPT_BYTES)])
def test_a_body_that_trickles_ends_once_others_wait(
    served: tuple[Service, str], begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathered_bodies, "SPARE_BYTES", KEPT_BYTES // 2)
    service, url = served
    with sending(url, LENGTH, begin) as slow:
        wait_until(lambda: service.queue.num_running == (len(begin) > KEPT_BYTES))
        with sending(url, 4, b"hold") as holding, sending(url, 4, b"hold") as waiting:
            pace = b"256 KiB/s" if len(begin) > KEPT_BYTES else b"16 KiB/s"
            assert b"less than " + pace + b", while other requests waited" in trickle(slow)
            assert read_answer(holding)[0] == read_answer(waiting)[0] == 200
    assert service.arrivals.num_slow == 0


def trickle(client: socket.socket) -> bytes:
    """Sends a byte now and then until it is refused, and returns the answer."""
    client.settimeout(HURRY_S / 4)
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            client.sendall(b"a")
            answer = client.recv(65536)
            client.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError):  # a byte came after the end
                answer += b"".join(iter(lambda: client.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 408")
            return answer
    raise AssertionError("it was not refused")


def test_too_many_slow_bodies_end_though_nobody_waits_for_a_place(
    served: tuple[Service, str],
) -> None:
    service, url = served
    with sending(url, LENGTH, b"a") as one, sending(url, LENGTH, b"a") as two:
        wait_until(lambda: service.arrivals.num_slow == MAX_SLOW)
        time.sleep(2 * HURRY_S)
        assert service.arrivals.num_slow == MAX_SLOW  # these may
        with sending(url, LENGTH, b"a") as three:
            # Those that came first have been slow for longer.
            assert b"less than 16 KiB/s" in trickle(one)
            wait_until(lambda: service.arrivals.num_slow <= MAX_SLOW)
            two.close()
            three.close()
    wait_until(lambda: service.arrivals.num_slow == 0)
    assert service.num_asked == 0


def test_a_body_that_keeps_to_the_pace_does_not_end(served: tuple[Service, str]) -> None:
    service, url = served
    step_s = HURRY_S / 3
    piece = b"a" * int(2 * HURRY_BYTES * step_s)
    with (
        sending(url, 4, b"hold") as holding,
        sending(url, 4, b"hold") as waiting,
        sending(url, 9 * len(piece), b"") as steady,
    ):
        wait_until(lambda: service.queue.num_waiting == 1)
        for _ in range(9):
            time.sleep(step_s)
            steady.sendall(piece)
        assert read_answer(steady) == (200, told(9 * piece))
        assert read_answer(holding)[0] == read_answer(waiting)[0] == 200


def test_a_client_that_leaves_before_its_body_is_whole_asks_nothing(
    served: tuple[Service, str],
) -> None:
    service, url = served
    with sending(url, LENGTH, b"a" * 100_000):
        wait_until(lambda: service.arrivals.num_slow == 1)
    wait_until(lambda: service.arrivals.num_slow == 0)
    assert service.num_asked == service.queue.num_running == service.queue.num_waiting == 0


def test_too_many_arriving_bodies_are_refused_and_whole_ones_are_not(
    served: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "HURRY_S", WAIT_S)
    service, url = served
    with contextlib.ExitStack() as slow:
        for _ in range(MAX_BODIES):
            slow.enter_context(sending(url, LENGTH, b"a" * 1000))
        wait_until(lambda: service.bodies.num_slow == MAX_BODIES)
        with sending(url, LENGTH, b"a" * 1000) as one_more:
            status, answer = read_answer(one_more)
        assert status == 429
        assert f"{MAX_BODIES} request bodies arrive slowly at {OWNER}" in str(answer)
        assert httpx.post(url, content=b"{}", timeout=WAIT_S).json() == told(b"{}")
    wait_until(lambda: service.bodies.num_slow == 0)


def test_one_key_does_not_take_the_room_of_others(
    served: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "HURRY_S", WAIT_S)
    service, url = served
    with contextlib.ExitStack() as slow:
        flood = [slow.enter_context(sending(url, LENGTH, b"a" * 1000)) for _ in range(MAX_BODIES)]
        wait_until(lambda: service.bodies.num_slow == MAX_BODIES)
        with sending(url, 2000, b"a" * 1000, key="b") as other:
            wait_until(lambda: any(has_answer(client) for client in flood))
            refused = [client for client in flood if has_answer(client)]
            assert len(refused) == 1
            assert read_answer(refused[0])[0] == 429
            other.sendall(b"a" * 1000)
            assert read_answer(other) == (200, told(b"a" * 2000))
        assert service.bodies.num_slow == MAX_BODIES - 1
    wait_until(lambda: service.bodies.num_slow == 0)


def has_answer(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        client.settimeout(WAIT_S)


def test_many_bodies_that_come_fast_are_all_read(served: tuple[Service, str]) -> None:
    service, url = served
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            clients = [
                stack.enter_context(sending(url, 300_000, b"a" * 200_000))
                for _ in range(2 * MAX_BODIES)
            ]
            for client in clients:
                client.sendall(b"a" * 100_000)
            assert {read_answer(client)[0] for client in clients} == {200}
    assert service.bodies.num_slow == 0


def test_a_full_queue_refuses_before_a_body_is_read(served: tuple[Service, str]) -> None:
    service, url = served
    with contextlib.ExitStack() as stack:
        for _ in range(1 + MAX_WAITING):
            stack.enter_context(sending(url, 4, b"hold"))
        wait_until(lambda: service.queue.num_waiting == MAX_WAITING)
        with sending(url, LENGTH, b"a" * 1000) as client:
            status, answer = read_answer(client)
    assert status == 429
    assert "is full" in str(answer)


def test_what_came_while_the_loop_was_busy_is_in_time(
    served: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "HURRY_S", 2.0)
    service, url = served
    length = 200_000
    with contextlib.ExitStack() as stack:
        others = [
            stack.enter_context(sending(url, 4, body)) for body in (b"busy", b"hold", b"hold")
        ]
        wait_until(lambda: service.queue.num_waiting == 2)
        with sending(url, length, b"a") as slow:
            time.sleep(2)
            slow.sendall(b"a" * (length - 1))
            assert read_answer(slow) == (200, told(b"a" * length))
        assert [read_answer(other)[0] for other in others] == [200] * 3


def test_many_that_came_while_the_loop_was_busy_are_not_slow(
    served: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving_body, "HURRY_S", WAIT_S)
    monkeypatch.setattr(gathered_bodies, "SLOW_S", 1.5)
    service, url = served
    length = 400_000
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(sending(url, 4, b"busy"))
        wait_until(lambda: service.queue.num_running == 1)
        clients = [stack.enter_context(sending(url, length, b"a")) for _ in range(2 * MAX_BODIES)]
        time.sleep(2)
        for client in clients:
            client.sendall(b"a" * (length - 1))
        assert {read_answer(client)[0] for client in [busy, *clients]} == {200}


@pytest.mark.parametrize("step_s", [0.1, 0.3, 0.7])
def test_a_pace_below_the_least_ends_at_any_time_of_looking(
    monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    now_s = 0.0
    monkeypatch.setattr(arriving_body, "monotonic", lambda: now_s)
    monkeypatch.setattr(arriving_body, "HURRY_S", HURRY_S)
    arrivals = Arrivals(0, lambda: True)
    body = arriving_body.ArrivingBody(LENGTH, arrivals)
    piece = {"body": b"a" * int(HURRY_BYTES * step_s / 8), "more_body": True}
    while now_s < 2 * HURRY_S:
        body.listen()
        now_s += step_s
        assert body.take(piece) is None
        body.listen()
        if body.look() is not None:
            break
    else:
        pytest.fail("it was not refused")
    assert HURRY_S < now_s < 1.5 * HURRY_S + step_s


@pytest.mark.parametrize(("held", "most"), [(1, 1), (3, 3), (8, 6), (192, 144)])
def test_room_is_left_for_whole_bodies(held: int, most: int) -> None:
    assert max_slow(held) == most
