"""`truthgpt chat`: in a pipe, for one question, and on a real terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli_service import (
    EVENTS,
    Answer,
    Request,
    delta,
    envelope,
    environment,
    events,
    model_list,
    run_cli,
    run_program,
    serve,
)
from tests.support.terminal import Terminal, on_terminal

CHAT = "/v1/chat/completions"
COMMAND = [sys.executable, "-m", "truthgpt_serve.cli", "chat"]


def says(*texts: str, **last: Any) -> Answer:
    parts = [delta(text) for text in texts]
    return Answer(pieces=events(*parts, delta("", **last)), content_type=EVENTS)


def repeats(request: Request) -> Answer:
    """A model that says how many messages it got, and the last of them."""
    messages = request.body["messages"]
    return says(f"{request.body['model']} got {len(messages)}: ", messages[-1]["content"])


SERVICE: dict[str, Any] = {
    CHAT: repeats,
    "/v1/models": model_list("echo", "story"),
    "/v1/models/echo": Answer({"card": {"task": "text-generation"}}),
    "/v1/models/story": Answer({"card": {"task": "text-generation"}}),
}


# -- in a pipe


def test_a_pipe_is_one_question() -> None:
    with serve(SERVICE) as service:
        done = run_program("chat", "story", stdin="hi\nthere\n", env=service.env())
    assert (done.returncode, done.stdout) == (0, "story got 1: hi\nthere\n"), done.stderr
    assert done.stderr == ""


def test_a_prompt_leaves_the_pipe_alone_and_options_are_sent() -> None:
    options = ["--system", "Be short.", "--max-tokens", "5", "--temperature", "0", "--seed", "3"]
    with serve(SERVICE) as service:
        done = run_cli("chat", "story", "-p", "hi", *options, env=service.env())
        [request] = service.requests
    assert (done.returncode, done.stdout) == (0, "story got 2: hi\n"), done.stderr
    assert request.body == {
        "model": "story",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "hi"},
        ],
        "max_tokens": 5,
        "temperature": 0.0,
        "seed": 3,
        "stream": True,
    }


def test_nothing_to_ask_is_wrong_use() -> None:
    with serve(SERVICE) as service:
        done = run_cli("chat", "story", stdin="\n", env=service.env())
    assert done.returncode == 2
    assert "there is nothing to ask" in done.stderr
    assert service.requests == []


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_is_no_text_is_wrong_use(locale: str) -> None:
    with serve(SERVICE) as service:
        done = subprocess.run(
            [*COMMAND, "story"],
            input=b"caf\xe9",
            capture_output=True,
            timeout=60,
            env=environment(service.env(LC_ALL=locale)),
        )
    assert done.returncode == 2
    assert b"standard input is not text in UTF-8: the byte 0xe9 behind 'caf'" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([b"\xe9x", b"-p", b"x"], b"MODEL is not text in UTF-8: the byte 0xe9 at its beginning"),
        (
            [b"story", b"-p", b"caf\xe9"],
            b"--prompt is not text in UTF-8: the byte 0xe9 behind 'caf'",
        ),
        ([b"story", b"-p", b"x", b"-s", b"a\xff"], b"--system is not text in UTF-8: the byte 0xff"),
    ],
)
def test_arguments_that_are_no_text_are_named(arguments: list[bytes], message: bytes) -> None:
    with serve(SERVICE) as service:
        done = subprocess.run(
            [*(part.encode() for part in COMMAND), *arguments],
            capture_output=True,
            timeout=60,
            env=environment(service.env(LC_ALL="C.UTF-8")),
        )
    assert done.returncode == 2
    assert message in done.stderr
    assert service.requests == []


def test_the_only_model_for_texts_is_taken() -> None:
    drawing = {**SERVICE, "/v1/models/echo": Answer({"card": {"task": "image-generation"}})}
    with serve(drawing) as service:
        done = run_cli("chat", stdin="hi", env=service.env())
    assert done.stdout == "story got 1: hi\n", done.stderr
    with serve(SERVICE) as service:
        done = run_cli("chat", stdin="hi", env=service.env())
    assert done.returncode == 2
    assert "name one of the models for text-generation: echo, story" in done.stderr


def test_errors_are_one_line_and_exit_1() -> None:
    missing = Answer(envelope("The model 'stroy' does not exist", "model_not_found"), 404)
    broken = Answer(
        pieces=events(delta("Once"), envelope("the replica died"), done=False), content_type=EVENTS
    )
    for answer, text in ((missing, "did you mean story?"), (broken, "the replica died")):
        with serve({**SERVICE, CHAT: answer}) as service:
            done = run_cli("chat", "stroy", stdin="hi", env=service.env())
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert text in line


def test_statistics_and_what_was_cut_off_go_to_standard_error() -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    parts = [delta("a"), delta("b", finish_reason="length"), usage]
    with serve({**SERVICE, CHAT: Answer(pieces=events(*parts), content_type=EVENTS)}) as service:
        done = run_cli("chat", "story", "--stats", stdin="hi", env=service.env())
        assert service.requests[0].body["stream_options"] == {"include_usage": True}
    assert done.stdout == "ab\n"
    assert "reached its longest length" in done.stderr
    assert "2 tokens" in done.stderr


# -- on a terminal


@pytest.fixture
def terminal(tmp_path: Path) -> Any:
    with (
        serve(SERVICE) as service,
        on_terminal(*COMMAND, "story", env=environment(service.env()), cwd=tmp_path) as shown,
    ):
        shown.wait_for("/help lists the commands")
        yield shown


def ask(terminal: Terminal, text: str, answer: str) -> None:
    terminal.wait_for("> ")
    terminal.type(f"{text}\n")
    terminal.wait_for(answer)


def test_it_remembers_what_was_said_and_leaves_in_order(terminal: Terminal) -> None:
    ask(terminal, "one", "story got 1: one")
    ask(terminal, "two", "story got 3: two")
    ask(terminal, "//help", "story got 5: /help")
    ask(terminal, '"""first', "... ")
    terminal.type('second"""\n')
    terminal.wait_for("story got 7: first")
    terminal.wait_for("second")
    ask(terminal, "/clear", "forgotten")
    ask(terminal, "/system Be short.", "system prompt: Be short.")
    ask(terminal, "three", "story got 2: three")
    ask(terminal, "/model ecko", "did you mean echo?")
    ask(terminal, "/model echo", "echo answers from now on")
    ask(terminal, "four", "echo got 4: four")
    ask(terminal, "/sytem", "did you mean /system?")
    ask(terminal, "/help", "/save [FILE]")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_a_conversation_is_saved_but_over_nothing(terminal: Terminal, tmp_path: Path) -> None:
    ask(terminal, "one", "story got 1: one")
    ask(terminal, "/save talk.json", "saved talk.json")
    ask(terminal, "/save talk.json", "talk.json exists already: name another file")
    ask(terminal, "/save talk.md", "saved talk.md")
    ask(terminal, "/save no/such/folder.json", "cannot be written")
    ask(terminal, "/save ~no-such-user-here/x", "~no-such-user-here/x cannot be written")
    ask(terminal, "/exit", "\n")
    assert terminal.end() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved["model"] == "story"
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert "**assistant**\n\nstory got 1: one" in (tmp_path / "talk.md").read_text()


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    endless = Answer(
        pieces=events(*[delta(f"word{number} ") for number in range(100_000)]),
        content_type=EVENTS,
        pause_s=0.01,
    )
    answers = iter([endless, says("the end")])
    with (
        serve({**SERVICE, CHAT: lambda _: next(answers)}) as service,
        on_terminal(*COMMAND, "story", env=environment(service.env()), cwd=tmp_path) as shown,
    ):
        ask(shown, "tell me all", "word3")
        shown.type("\x03\x03")  # twice, as people do
        shown.wait_for("stopped")
        assert service.requests[0].left.wait(30)  # the model's work has ended
        ask(shown, "and now", "the end")
        messages = service.requests[1].body["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert messages[1]["content"].startswith("word0 word1 word2 ")
        shown.wait_for("> ")
        shown.type("half a question")
        shown.wait_for("half a question")
        shown.interrupt("leave with Ctrl-D or /exit")
        shown.wait_for("> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert len(service.requests) == 2


def test_a_failure_does_not_end_the_conversation(tmp_path: Path) -> None:
    full = Answer(envelope("the queue is full", "overloaded"), 429)
    answers = iter([full, says("better")])
    with (
        serve({**SERVICE, CHAT: lambda _: next(answers)}) as service,
        on_terminal(*COMMAND, "story", env=environment(service.env()), cwd=tmp_path) as shown,
    ):
        ask(shown, "one", "the queue is full")
        ask(shown, "two", "better")
        shown.wait_for("> ")
        shown.type("\x04")
        assert shown.end() == 0
    assert service.requests[1].body["messages"] == [{"role": "user", "content": "two"}]


def test_a_model_cannot_control_the_terminal(tmp_path: Path) -> None:
    nasty = says("a\x1b]0;title\x07b\x9b31mc\r\x08\ttab\nline")
    with (
        serve({**SERVICE, CHAT: nasty}) as service,
        on_terminal(*COMMAND, "story", "-p", "x", env=environment(service.env())) as shown,
    ):
        assert shown.end() == 0
        assert shown.seen.startswith("abc")
        assert "\x1b]" not in shown.seen
        # Into a pipe everything goes as it is.
        assert "\x1b]0;title" in run_cli("chat", "story", "-p", "x", env=service.env()).stdout


def test_the_model_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    with (
        serve(SERVICE) as service,
        on_terminal(*COMMAND, env=environment(service.env()), cwd=tmp_path) as shown,
    ):
        shown.wait_for("model (echo, story) [echo]: ")
        shown.type("story\n")
        shown.wait_for("story at http://127.0.0.1")
        shown.wait_for("> ")
        shown.type("/exit\n")
        assert shown.end() == 0
