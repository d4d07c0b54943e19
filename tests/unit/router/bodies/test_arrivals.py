"""Many slow or large bodies do not take a router from the others; over real HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.servers import serve_asgi
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import TruthGPTError
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_error, send_json
from truthgpt_serve.router.bodies import arrivals
from truthgpt_serve.router.bodies.request_body import BodyReader, ClientLeftError

HURRY_S = 0.6
MAX_SLOW = 2
WAIT_S = 20.0
LENGTH = 4 << 20
BEGIN = b'{"prompt": "'


class Reader:
    """Reads bodies as a router does, and answers with what they name."""

    def __init__(self) -> None:
        self.bodies = BodyReader(RouterConfig())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self.bodies.decoded(scope, receive) as (plain, receive_plain):
                model, body = await self.bodies.read_model(plain, receive_plain, None)
                await self.bodies.gather(body)
        except TruthGPTError as error:
            await send_error(send, error)
        except ClientLeftError:
            return
        else:
            await send_json(send, {"model": model, "bytes": body.num_bytes})


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[arrivals.Arrivals, str]]:
    monkeypatch.setattr(arrivals, "HURRY_S", HURRY_S)
    monkeypatch.setattr(arrivals, "LOOK_S", 0.05)
    monkeypatch.setattr(arrivals, "MAX_SLOW", MAX_SLOW)
    reader = Reader()
    with serve_asgi(reader) as url:
        yield reader.bodies.arrivals, url


@contextlib.contextmanager
def sending(url: str, begin: bytes, coding: str = "identity") -> Iterator[socket.socket]:
    """Begins a request with a body."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=WAIT_S) as client:
        head = f"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {LENGTH}\r\n"
        client.sendall(f"{head}content-encoding: {coding}\r\n\r\n".encode() + begin)
        yield client


def read_answer(client: socket.socket) -> tuple[int, str]:
    client.settimeout(WAIT_S)
    answer = b"".join(iter(lambda: client.recv(65536), b""))
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2].decode()


def trickle(clients: list[socket.socket]) -> socket.socket:
    """Sends a byte for each now and then until one is answered, and returns that one."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        for client in clients:
            client.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                if client.recv(1, socket.MSG_PEEK):
                    return client
            client.sendall(b"a")
    raise AssertionError("none was answered")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("begin", [BEGIN, b'{"model": "m", "prompt": "'], ids=["unnamed", "named"])
def test_of_too_many_slow_bodies_the_slowest_ends(
    served: tuple[arrivals.Arrivals, str], begin: bytes, coding: str
) -> None:
    seen, url = served
    with contextlib.ExitStack() as slow:
        clients = [slow.enter_context(sending(url, begin, coding)) for _ in range(MAX_SLOW + 1)]
        status, text = read_answer(trickle(clients))
        assert status == 408
        assert "less than 16 KiB/s" in text
        time.sleep(2 * HURRY_S)
        assert seen.num_arriving == MAX_SLOW  # these may
    wait_until(lambda: seen.num_arriving == 0)


def test_bodies_that_keep_to_the_pace_do_not_end(served: tuple[arrivals.Arrivals, str]) -> None:
    _, url = served
    step_s, piece = HURRY_S / 4, b"a" * (LENGTH // 16)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(sending(url, BEGIN)) for _ in range(MAX_SLOW + 2)]
        for _ in range(15):
            time.sleep(step_s)
            for client in clients:
                client.sendall(piece)
        rest = b'", "model": "m"}'
        rest += b" " * (LENGTH - len(BEGIN) - 15 * len(piece) - len(rest))
        for client in clients:
            client.sendall(rest)
            status, text = read_answer(client)
            assert (status, json.loads(text)) == (200, {"model": "m", "bytes": LENGTH})


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_what_is_kept_of_all_bodies_is_bounded(
    served: tuple[arrivals.Arrivals, str], monkeypatch: pytest.MonkeyPatch, coding: str
) -> None:
    monkeypatch.setattr(arrivals, "MAX_KEPT_BYTES", LENGTH)
    seen, url = served
    with (
        sending(url, BEGIN + b"a" * (LENGTH // 2 + LENGTH // 4), coding) as large,
        sending(url, BEGIN, coding) as second,
    ):
        wait_until(lambda: seen.num_kept > LENGTH // 2)
        second.sendall(b"a" * (LENGTH // 2))
        status, text = read_answer(large)
        assert status == 429
        assert "too many large request bodies" in text
        wait_until(lambda: LENGTH // 4 < seen.num_kept < LENGTH // 2)
        answer = httpx.post(url, content=b'{"model": "m"}', timeout=WAIT_S)
        assert answer.json() == {"model": "m", "bytes": 14}
    wait_until(lambda: seen.num_kept == seen.num_arriving == 0)


def test_the_largest_body_is_refused_where_it_is_the_one_that_grows(
    served: tuple[arrivals.Arrivals, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MAX_KEPT_BYTES", LENGTH // 4)
    seen, url = served
    with sending(url, BEGIN) as client:
        client.settimeout(WAIT_S)
        with contextlib.suppress(ConnectionError):  # it is answered before all is sent
            for _ in range(LENGTH // 65536):
                client.sendall(b"a" * 65536)
        wait_until(lambda: seen.num_arriving == seen.num_kept == 0)


async def test_what_is_kept_counts_until_it_is_sent_on() -> None:
    pieces = [b'{"a": "', b"a" * LENGTH, b'", "model": "m"}']

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    reader = BodyReader(RouterConfig())
    _, body = await reader.read_model({"type": "http", "headers": []}, receive, None)
    assert reader.arrivals.num_arriving == 0
    assert reader.arrivals.num_kept > LENGTH - 2 * arrivals.GATHERED_BYTES
    body.sent()
    body.release()
    assert reader.arrivals.num_kept == 0


async def test_nothing_stays_counted_of_a_body_that_is_refused() -> None:
    pieces = [b'{"a": "', b"a" * LENGTH, b'", "model": 1}']

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    reader = BodyReader(RouterConfig())
    with pytest.raises(TruthGPTError):
        await reader.read_model({"type": "http", "headers": []}, receive, None)
    assert reader.arrivals.num_kept == reader.arrivals.num_arriving == 0
