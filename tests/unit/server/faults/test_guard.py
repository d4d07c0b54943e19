"""Deaths of replicas: records that outlive a process, causes, strikes, and the quarantine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import pytest

from truthgpt_serve.errors import ServerError
from truthgpt_serve.http.asgi import send_json
from truthgpt_serve.server.faults import ReplicaGuard
from truthgpt_serve.server.faults import guard as guard_module
from truthgpt_serve.server.faults import history as history_module
from truthgpt_serve.server.faults import quarantine as quarantine_module
from truthgpt_serve.server.faults.card import CardWithDeath
from truthgpt_serve.server.faults.history import History
from truthgpt_serve.server.faults.quarantine import Quarantine
from truthgpt_serve.server.faults.record import NUM_SLOTS, Record, take_remains

App = Callable[[Any, Any, Any], Awaitable[None]]
CFG = {"model": {"family": "x"}}

CHILD = """
import os, signal, sys, time, faulthandler, ctypes
from pathlib import Path
from truthgpt_serve.server.faults import guard
from truthgpt_serve.server.faults.cause import count_oom_kills
from truthgpt_serve.server.faults.card import CardWithDeath
from truthgpt_serve.server.faults.history import History
from truthgpt_serve.server.faults.record import Record
folder, how, phase, fingerprint = Path(sys.argv[1]), *sys.argv[2:]
faulthandler.enable()
record = Record(History(folder, "v").folder, phase=phase, version="v",
                stderr=os.readlink("/proc/self/fd/2"), oom_kills=count_oom_kills())
guard._note_exits(record)
record.begin(bytes.fromhex(fingerprint))
done = record.begin(bytes.fromhex("ee" * 16)); record.end(done)
if how == "segfault":
    def crash_here(): ctypes.string_at(0)
    crash_here()
elif how == "exit": os._exit(3)
elif how == "kill": os.kill(os.getpid(), signal.SIGKILL)
elif how == "abort": os.abort()
elif how == "good": record.close()
"""
FINGERPRINT = bytes(range(16))


def run_child(folder: Path, how: str, phase: str = "serving") -> None:
    stderr = folder.parent / f"{how}-{time.time_ns()}.err"
    with stderr.open("wb") as output:
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CHILD), folder, how, phase, FINGERPRINT.hex()],
            stderr=output,
            timeout=60,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deaths", "v")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("segfault", r"SIGSEGV \(signal 11.*crash_here|string_at"),
        ("abort", r"SIGABRT \(signal 6"),
        ("exit", "exit code 3"),
        ("kill", r"SIGKILL \(signal 9"),
    ],
)
def test_a_death_leaves_its_cause_and_what_was_in_flight(
    history: History, how: str, cause: str
) -> None:
    run_child(history.folder, how)
    history.take_in()
    (death,) = history.deaths()
    assert death.phase == "serving"
    assert re.search(cause, death.cause), death.cause
    assert history.strikes(FINGERPRINT) == 1
    assert history.strikes(bytes.fromhex("ee" * 16)) == 0, "it had been answered"
    history.take_in()
    assert len(history.deaths()) == 1
    assert not list(history.folder.glob("*.record"))


def test_an_end_in_good_order_is_no_death(history: History) -> None:
    run_child(history.folder, "good")
    history.take_in()
    assert history.deaths() == []
    assert history.strikes(FINGERPRINT) == 0


def test_a_death_with_another_configuration_says_nothing(history: History) -> None:
    run_child(history.folder, "kill")
    other = History(history.folder, "another")
    other.take_in()
    assert other.deaths() == []
    assert other.strikes(FINGERPRINT) == 0


def test_a_living_process_is_left_alone(tmp_path: Path) -> None:
    record = Record(tmp_path)
    code = (
        "import sys; from pathlib import Path;"
        "from truthgpt_serve.server.faults.record import take_remains;"
        "sys.exit(take_remains(Path(sys.argv[1])) is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, record.path],
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0
    assert record.path.exists()
    record.close()


def test_a_torn_record_is_read(tmp_path: Path) -> None:
    for data in (b"", b"{", b"[]\0", b"\xff" * 5000):
        path = tmp_path / "1.record"
        path.write_bytes(data)
        remains = take_remains(path)
        assert remains is not None
        assert remains.facts == {}


def test_more_requests_than_slots_are_served(tmp_path: Path) -> None:
    record = Record(tmp_path)
    slots = [record.begin(FINGERPRINT) for _ in range(NUM_SLOTS + 3)]
    assert slots[-1] is None
    for slot in slots:
        record.end(slot)
    assert record.in_flight() == []
    record.close()
    record.end(record.begin(FINGERPRINT))
    record.note(phase="later")


def test_strikes_expire_and_are_bounded(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [number.to_bytes(16, "big") for number in range(1, 300)]
    monkeypatch.setattr(history_module, "MAX_STRIKES", 100)
    history.add("serving", "x", many)
    assert len(json.loads((history.folder / "history.json").read_text())["strikes"]) == 100
    for _ in range(40):
        history.add("serving", "x", [FINGERPRINT])
    assert len(history.deaths()) == history_module.MAX_DEATHS
    assert history.strikes(FINGERPRINT) == 40
    time.sleep(0.2)
    monkeypatch.setattr(history_module, "STRIKE_S", 0.1)
    assert history.strikes(FINGERPRINT) == 0
    history.add("serving", "x", [FINGERPRINT])
    monkeypatch.setattr(history_module, "STRIKE_S", 600.0)
    assert history.strikes(FINGERPRINT) == 1, "older deaths do not count"


def test_a_damaged_history_is_begun_anew(history: History) -> None:
    history.add("serving", "x", [FINGERPRINT])
    for text in ("{", "[]", '{"deaths": 3, "strikes": {}}', '{"deaths": [], "strikes": {"a": 1}}'):
        (history.folder / "history.json").write_text(text)
        fresh = History(history.folder, "v")
        assert fresh.deaths() == []
        assert fresh.strikes(FINGERPRINT) == 0


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
        self, *parts: bytes, path: str = "/models/x/v1/infer", method: str = "POST"
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
        await self.app(scope, receive, send)
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

    for odd in (find_ended, "an attribute of the same name"):
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


async def test_the_card_says_how_the_last_process_died() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/v1/models/x"):
            await send_json(send, {"id": "x"})
        elif scope["path"].endswith("/v1/models/list"):
            await send_json(send, [1])
        else:
            await send_json(send, {"error": {}}, status=404)

    async def get(path: str) -> tuple[int, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await CardWithDeath(app, "died: SIGSEGV")(scope, None, send)  # type: ignore[arg-type]
        return sent[0]["status"], json.loads(sent[1]["body"])

    assert await get("/models/x/v1/models/x") == (200, {"id": "x", "last_error": "died: SIGSEGV"})
    assert await get("/models/x/v1/models/list") == (200, [1])
    assert await get("/models/x/v1/models/y") == (404, {"error": {}})
    assert (await get("/health"))[0] == 404


def test_a_folder_that_cannot_be_written_keeps_nothing_back(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    guard = ReplicaGuard("x", CFG, folder=file)
    assert guard.wrap(echo, None) is echo
    guard.close()
