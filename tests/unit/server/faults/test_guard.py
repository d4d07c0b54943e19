"""Deaths of replicas: records that outlive a process, causes, strikes, and the quarantine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.asgi import WholeBody
from truthgpt_serve.server.faults import ReplicaGuard
from truthgpt_serve.server.faults import guard as guard_module
from truthgpt_serve.server.faults import quarantine as quarantine_module
from truthgpt_serve.server.faults.history import History
from truthgpt_serve.server.faults.quarantine import Quarantine
from truthgpt_serve.server.faults.record import Record

App = Callable[[Any, Any, Any], Awaitable[None]]
CFG = {"model": {"family": "x"}}


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deaths", "v")


@pytest.fixture(autouse=True)
def closed_records() -> Iterator[None]:
    """Closes what `Served` opened."""
    yield
    while Served.records:
        Served.records.pop().close()


class Served:
    """Sends requests to a quarantine around an application."""

    records: ClassVar[list[Record]] = []

    def __init__(self, app: App, history: History, ended: Callable[[], str | None]) -> None:
        self.record = Record(history.folder)
        self.records.append(self.record)
        self.app = Quarantine(app, self.record, history, ended)

    async def post(
        self,
        *parts: bytes,
        path: str = "/models/x/v1/infer",
        method: str = "POST",
        is_gathered: bool = False,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        messages = [
            {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
            for index, part in enumerate(parts)
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop(0)
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "headers": []}
        whole = WholeBody(b"".join(parts), receive) if is_gathered else receive
        await self.app(scope, whole, send)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], dict(sent[0]["headers"]), body


async def read_all(receive: Any) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message["body"])
        more = message["more_body"]
    return b"".join(parts)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await read_all(receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def test_two_deaths_with_one_request_quarantine_it_alone(history: History) -> None:
    dead = False

    def ended() -> str | None:
        return "it died" if dead else None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal dead
        if (body := await read_all(receive)) == b"poison":
            history.add("serving", "the engine died", served.record.in_flight())
            dead = True
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    served = Served(app, history, ended)
    for expected in (200, 200, 422, 422):
        dead = False  # a new process
        status, _, body = await served.post(b"poi", b"son")
        assert status == expected
        if expected == 422:
            assert json.loads(body)["error"]["code"] == "request_quarantined"
    assert (await served.post(b"poison "))[0] == 200
    assert (await served.post(b"innocent"))[0] == 200
    assert (await served.post(b"", method="GET"))[0] == 200
    assert (await served.post(b"poison", path="/models/x/v1/completions"))[0] == 200


async def test_suspects_start_alone_and_are_forgiven(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        await echo(scope, receive, send)

    served = Served(app, history, lambda: None)
    bodies = [b"a", b"b", b"c", b"d"]
    await asyncio.gather(*(served.post(body) for body in bodies))
    assert most == 4
    prints: list[bytes] = []
    begin = served.record.begin

    def begin_noted(fingerprint: bytes) -> int | None:
        prints.append(fingerprint)
        return begin(fingerprint)

    monkeypatch.setattr(served.record, "begin", begin_noted)
    await asyncio.gather(*(served.post(body) for body in bodies))
    history.add("serving", "x", prints)
    most = 0
    answers = await asyncio.gather(*(served.post(body) for body in bodies))
    assert [status for status, _, _ in answers] == [200] * 4
    assert most == 1
    assert [history.strikes(key) for key in prints[:4]] == [0] * 4
    most = 0
    await asyncio.gather(*(served.post(body) for body in bodies))
    assert most == 4

    history.add("serving", "x", prints)
    monkeypatch.setattr(quarantine_module, "TRIAL_S", 0.01)
    most = 0
    await asyncio.gather(*(served.post(body) for body in bodies))
    assert most > 1, "a long answer does not hold the other suspects"


async def test_bodies_pass_whole_and_only_their_beginning_counts(history: History) -> None:
    served = Served(echo, history, lambda: None)
    large = [b"x" * 40_000, b"y" * 40_000, b"z" * 40_000]
    assert (await served.post(*large))[2] == b"".join(large)
    assert served.record.in_flight() == []


async def test_a_body_that_is_there_is_the_same_request_as_in_pieces(history: History) -> None:
    seen: list[list[bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(served.record.in_flight())
        await echo(scope, receive, send)

    served = Served(app, history, lambda: None)
    parts = (b"x" * 40_000, b"y" * 40_000)
    for is_gathered in (False, True):
        assert (await served.post(*parts, is_gathered=is_gathered))[2] == b"".join(parts)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1
    assert (await served.post(b"other", is_gathered=True))[2] == b"other"
    assert seen[2] != seen[0]


async def test_a_dead_engine_refuses_new_requests(history: History) -> None:
    served = Served(echo, history, lambda: "the engine died")
    status, headers, body = await served.post(b"x")
    assert status == 503
    assert headers[b"retry-after"]
    assert json.loads(body)["error"]["code"] == "model_unavailable"


async def test_the_guard_counts_an_engine_that_dies_and_leaves(tmp_path: Path) -> None:
    left: list[int] = []
    engine: dict[str, str | None] = {"error": None}

    def leave(code: int) -> NoReturn:
        left.append(code)
        raise asyncio.CancelledError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        engine["error"] = "RuntimeError: no"
        await asyncio.sleep(1)  # the answers of a dead engine are waited for
        assert not left
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = ReplicaGuard("m/x", CFG, folder=tmp_path, leave=leave)
    await guard.prepare()
    served = Served(app, History(tmp_path / "other", "v"), lambda: None)
    served.app = guard.wrap(app, lambda: engine["error"])
    assert (await served.post(b"poison"))[0] == 503
    async with asyncio.timeout(20):
        while not left:
            await asyncio.sleep(0.05)
    assert left == [1]
    guard.close()

    successor = ReplicaGuard("m/x", CFG, folder=tmp_path)
    await successor.prepare()
    assert successor.last_death is not None
    assert "RuntimeError: no" in successor.last_death
    assert successor._history is not None
    assert next(iter(successor._history._state.strikes.values()))[0] == 1
    successor.close()


async def test_two_deaths_while_loading_become_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    guard = ReplicaGuard("x", CFG, folder=tmp_path)
    assert guard._history is not None
    guard._history.add("loading", "it was ended by SIGSEGV (signal 11)")
    await guard.prepare()
    guard._history.add("loading", "it was ended by SIGSEGV (signal 11)")
    with pytest.raises(ServerError, match=r"2 times while it loaded: .*SIGSEGV \(signal 11\)"):
        await guard.prepare()
    await guard.prepare()  # the next process tries again
    assert not pauses
    for _ in range(12):
        guard._history.add("serving", "y")
    await guard.prepare()
    assert pauses == [guard_module.MAX_PAUSE_S]
    guard.close()


async def test_a_class_that_cannot_say_whether_it_is_dead_serves(tmp_path: Path) -> None:
    def find_ended() -> str | None:
        raise ValueError("no")

    nothing = (sys.exit, lambda: False, lambda: "")
    for odd in (find_ended, "an attribute of the same name", *nothing):
        guard = ReplicaGuard("x", CFG, folder=tmp_path)
        served = Served(echo, History(tmp_path / "other", "v"), lambda: None)
        served.app = guard.wrap(echo, odd)  # type: ignore[arg-type]
        assert (await served.post(b"hello"))[2] == b"hello"
        guard.close()


async def test_a_slow_body_is_served_whole(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine_module, "HEAD_LIMIT_S", 0.05)
    served = Served(echo, history, lambda: None)
    queue: asyncio.Queue[Any] = asyncio.Queue()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    queue.put_nowait({"type": "http.request", "body": b"slow ", "more_body": True})
    scope = {"type": "http", "method": "POST", "path": "/v1/infer", "headers": []}
    task = asyncio.create_task(served.app(scope, queue.get, send))
    await asyncio.sleep(0.3)
    queue.put_nowait({"type": "http.request", "body": b"body", "more_body": False})
    await task
    assert sent[1]["body"] == b"slow body"


def test_a_folder_that_cannot_be_written_keeps_nothing_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    guard = ReplicaGuard("x", CFG, folder=file)
    assert guard.wrap(echo, None) is echo
    guard.close()
