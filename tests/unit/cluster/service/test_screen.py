"""What `make serve` shows while a service starts and later, from answers of a real HTTP server."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from truthgpt_serve.cluster.service import screen as screen_module
from truthgpt_serve.cluster.service.next_steps import describe_service
from truthgpt_serve.cluster.service.readiness import ModelStatus, Readiness
from truthgpt_serve.cluster.service.screen import Screen
from truthgpt_serve.cluster.service.service_log import ServiceLog

NOWHERE = "http://127.0.0.1:9"
LOADING, RUNNING = ModelStatus("DEPLOYING"), ModelStatus("RUNNING")
FAILED = ModelStatus("DEPLOY_FAILED", "RuntimeError: \x1b[31mno\nweights")


def answer(**models: ModelStatus) -> Readiness:
    ready = all(model.status == "RUNNING" for model in models.values())
    return Readiness(answered=True, ready=ready, models=models)


@pytest.fixture
def create(tmp_path: Path) -> Callable[..., Screen]:
    def create_screen(*, terminal: bool = False, verbose: bool = False) -> Screen:
        console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
        log = ServiceLog(tmp_path)
        return Screen(log, NOWHERE, ["a", "b"], verbose=verbose, console=console)

    return create_screen


def write(screen: Screen, text: str) -> None:
    with screen.log.open_for_writing(fresh=False) as file:
        file.write(text.encode())


def test_changes_are_told_once(
    create: Callable[..., Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = create()
    with screen.start():
        assert not screen.show(Readiness())
        for _ in range(3):
            assert not screen.show(answer(a=RUNNING, b=LOADING))
            assert not screen.show(answer(a=LOADING, b=LOADING))
        assert screen.show(answer(a=RUNNING, b=RUNNING))
        assert screen.show(Readiness())  # not one missed answer is a change
        assert screen.show(answer(a=RUNNING, b=LOADING))  # nor is one of a router that knows less
        for _ in range(3):
            assert screen.show(answer(a=RUNNING, b=FAILED))
        for _ in range(3):
            assert screen.show(answer(a=RUNNING))
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("[serve] ")]
    assert told[:2] == ["[serve] a: running (0 s)", "[serve] b: loading (0 s)"]
    assert told[2] == "[serve] a: loading (0 s)"
    assert told[3].startswith("[serve] ready after 0.")
    assert told[4].startswith(f"[serve] log: {screen.log.path}; ")
    assert told[5:] == ["[serve] b: failed: RuntimeError: no weights", "[serve] b: removed"]
    assert "Try:" in lines


def test_the_playgrounds_address_is_told_where_there_is_one() -> None:
    line = f"playground: {NOWHERE}/ui"
    assert line in describe_service(NOWHERE, {}, playground=True)
    assert line not in describe_service(NOWHERE, {})


def test_a_failed_model_does_not_keep_the_others_waiting(
    create: Callable[..., Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = create()
    with screen.start():
        assert screen.show(answer(a=RUNNING, b=FAILED))
        for _ in range(2):
            assert screen.show(answer(a=RUNNING, b=RUNNING))
    out = capsys.readouterr().out
    assert f"s, without b: {NOWHERE}\n" in out
    assert "[serve] b: failed: RuntimeError: no weights; `" in out
    assert "why b` says more" in out
    assert out.endswith("[serve] b: running\n")


def test_a_service_without_its_controller_is_not_up(create: Callable[..., Screen]) -> None:
    screen = create()
    lost = Readiness(True, False, {"a": RUNNING}, "Ray Serve's controller has not answered")
    with screen.start():
        assert not screen.show(lost)
    assert lost.describe_waiting() == "Ray Serve's controller has not answered"


def test_the_table_of_a_terminal(create: Callable[..., Screen]) -> None:
    screen = create(terminal=True)
    with screen.start():
        assert not screen.show(Readiness())
        assert _render(screen).count("waits for Ray") == 2
        assert not screen.show(answer(a=RUNNING, b=ModelStatus("DEPLOYING", "waits for 3 GPUs")))
        text = _render(screen)
    assert "running" in text
    assert "waits for 3 GPUs" in text


def test_brackets_of_a_message_are_no_markup(create: Callable[..., Screen]) -> None:
    screen = create(terminal=True)
    message = "cannot load [/data/weights] Optional[int]"
    with screen.start():
        assert not screen.show(answer(a=ModelStatus("DEPLOY_FAILED", message), b=LOADING))
        assert message in _render(screen)
        time.sleep(0.3)  # the thread that draws has drawn it


def _render(screen: Screen) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(screen)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


NOISE = "(raylet) Failed to load torchao\n(ServeReplica:x) libtcmalloc is not found\n"


def test_only_what_is_meant_for_the_user_is_shown(
    create: Callable[..., Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = create()
    write(screen, f"{NOISE}[serve] checking: \x1b[2Jslow\nfault: x.yaml:2: y\n1 fault\nhalf")
    screen.pass_on()
    assert capsys.readouterr().out == "[serve] checking: slow\nfault: x.yaml:2: y\n1 fault\n"
    verbose = create(verbose=True)
    verbose.pass_on()
    write(screen, " a line\n")
    verbose.pass_on()
    out = capsys.readouterr().out
    assert out.startswith(NOISE)
    assert out.endswith("half a line\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_full_disk_is_told_while_ray_waits(
    create: Callable[..., Screen],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    monkeypatch.setattr(screen_module, "REPORT_PERIOD_S", 0)
    screen = create(terminal=terminal)
    with screen.start():
        screen.show(Readiness())
        assert "disk" not in capsys.readouterr().out
        write(screen, "Failed flush to file /m/ray/core.log: No space left on device\n")
        screen.show(Readiness())
    shown = f"{capsys.readouterr().out}{screen._console.file.getvalue()}"  # type: ignore[attr-defined]
    assert "/m/ray/core.log: the disk is full: free some space" in shown


def test_the_cause_and_the_fix(
    create: Callable[..., Screen], capsys: pytest.CaptureFixture[str]
) -> None:
    screen = create()
    frames = "".join(f"  File x.py, line {n}\n" for n in range(30))
    frames += "token=hf_abcdefghijklmnop\n"
    write(screen, f"Traceback:\n{frames}OSError: [Errno 28] No space left on device\n\nbye\n")
    screen.show_cause()
    out = capsys.readouterr().out
    assert "    OSError: [Errno 28] No space left on device\n    bye\n" in out
    assert out.count("\n") <= 14
    assert "hf_abc" not in out
    assert "***" in out
    assert out.endswith("[serve] the disk is full: free some space; `df -h` shows\n")
