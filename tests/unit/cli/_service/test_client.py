"""How commands find the service, and what a user reads when it does not answer or refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.support.cli_service import (
    EVENTS,
    Answer,
    envelope,
    events,
    model_list,
    run_cli,
    serve,
    write_run,
)
from truthgpt_serve.cli._service.address import Address, find_address, read_key
from truthgpt_serve.cli._service.client import ServiceClient
from truthgpt_serve.cli._service.failures import ServiceFault
from truthgpt_serve.cli.schema import KINDS
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import read_process
from truthgpt_serve.cluster.service.run_file import RunFile
from truthgpt_serve.validate.reference import SCHEMAS

KEY = "sk-secret-of-a-test"
HEAVY = ("pydantic", "yaml", "httpx", "rich", "ray", "numpy", "aiohttp")


def fault(client: ServiceClient, path: str, **request: object) -> ServiceFault:
    with pytest.raises(ServiceFault) as raised:
        client.post(path, request) if request else client.get(path)
    assert "\n" not in raised.value.message
    assert raised.value.exit_code == 1
    return raised.value


# -- the command itself


def test_help_imports_nothing_that_takes_time() -> None:
    program = (
        "import sys; from truthgpt_serve.cli import main; "
        "main(['--help'], standalone_mode=False); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "Exit codes: 0 is success" in done.stdout
    assert "validate" in done.stdout


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    done = run_cli("valdate")
    assert done.returncode == 2
    assert "there is no command 'valdate': did you mean validate?" in done.stderr


def test_the_kinds_of_schemas_are_those_that_exist() -> None:
    assert list(KINDS) == list(SCHEMAS)


def completed(words: str, **env: str) -> list[str]:
    """Returns what a shell would offer for the last of some words."""
    number = str(len(words.split(" ")) - 1)
    ask = {"_TRUTHGPT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": number}
    done = run_cli(env={**ask, **env})
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_a_shell_completes_the_names_of_models() -> None:
    with serve({"/v1/models": model_list("echo", "shapes", "story")}) as service:
        env = service.env(TRUTHGPT_API_KEY=KEY)
        for command in ("chat", "image", "logs", "why"):
            assert completed(f"truthgpt {command} s", **env) == ["shapes", "story"], command
        assert completed("truthgpt val", **env) == ["validate"]
        assert "--system" in completed("truthgpt chat --s", **env)
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_a_shell_waits_for_no_service() -> None:
    slow = Answer(pieces=[b" "] * 100, pause_s=0.1)
    for answer in (slow, Answer(envelope("no key"), 401), Answer(b"<html>"), Answer([1])):
        with serve({"/v1/models": answer}) as service:
            assert completed("truthgpt why s", **service.env()) == []
    assert completed("truthgpt why s", TRUTHGPT_URL=f"http://127.0.0.1:{free_port()}") == []
    assert completed("truthgpt why s", TRUTHGPT_URL="nonsense") == []


# -- where the service is


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
        ("https://models.example.org/v1/", "https://models.example.org"),
        ("https://models.example.org/team/v1", "https://models.example.org/team"),
        (" http://[::1]:8000/ ", "http://[::1]:8000"),
    ],
)
def test_an_address_may_end_with_v1(given: str, url: str) -> None:
    assert find_address({"TRUTHGPT_URL": given}).url == url


@pytest.mark.parametrize(
    "given",
    ["localhost:8000", "ftp://a.example", "http://", "http://a:x", "http://a?b=1", "http://a#b"],
)
def test_what_is_no_address_is_a_usage_error(given: str) -> None:
    with pytest.raises(click.UsageError, match="TRUTHGPT_URL"):
        find_address({"TRUTHGPT_URL": given})


def test_passwords_of_addresses_are_not_shown() -> None:
    assert Address("http://me:secret@a.example/x", "").shown == "http://a.example/x"
    with pytest.raises(click.UsageError) as raised:
        find_address({"TRUTHGPT_URL": "ftp://me:secret@a.example"})
    assert "secret" not in raised.value.message


def test_the_service_of_this_machine_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_run(tmp_path / ".run")
    state = json.loads(path.read_text())
    found = find_address({})
    assert (found.url, found.run_folder) == ("http://127.0.0.1:8123", Path(".run"))
    assert find_address({"TRUTHGPT_URL": "http://127.0.0.1:8123/v1"}).run_folder == Path(".run")
    assert find_address({"TRUTHGPT_URL": "http://127.0.0.1:1"}).run_folder is None
    path.write_text(json.dumps({**state, "address": "http://[::1]:8124"}))
    assert find_address({}).url == "http://[::1]:8124"
    # A process that ended, and files that are not ours.
    for text in (json.dumps({**state, "started": state["started"] + 1}), "[]", '{"pid": "x"}', "{"):
        path.write_text(text)
        assert find_address({}).run_folder != Path(".run"), text


def test_a_key_goes_to_no_address_that_others_may_have_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".run"

    def is_believed() -> bool:
        found = find_address({}).run_folder
        return found is not None and found == Path(".run")

    path = write_run(folder)
    assert is_believed()
    for place, usual in ((folder, 0o755), (path, 0o644)):
        for mode in (usual | 0o020, usual | 0o002):
            place.chmod(mode)
            assert not is_believed(), (place, oct(mode))
        place.chmod(usual)
    assert is_believed()
    # Written by the service itself, whatever its umask is.
    umask = os.umask(0)
    try:
        run_file = RunFile(tmp_path / "other" / ".run")
        lock = run_file.lock()
        assert lock is not None
        with lock:
            run_file.write("x", [8123], "http://127.0.0.1:8123")
    finally:
        os.umask(umask)
    monkeypatch.chdir(tmp_path / "other")
    assert is_believed()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_run(tmp_path / ".run")
    for given in (path, path.parent):
        os.chown(given, 65534, -1)
        assert find_address({}).run_folder != Path(".run")
        os.chown(given, 0, -1)
    assert find_address({}).run_folder == Path(".run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts another user's processes")
def test_a_process_of_another_user_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for user, is_believed in ((65534, False), (0, True)):
        with subprocess.Popen(["sleep", "60"], user=user) as other:
            try:
                process = read_process(other.pid)
                assert process is not None
                write_run(tmp_path / ".run", pid=process.pid, started=process.started)
                assert (find_address({}).run_folder == Path(".run")) is is_believed
            finally:
                other.kill()


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("[::1]", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("192.0.2.7", False),
        ("[2001:db8::1]", False),
        ("no-such-host.invalid", False),
    ],
)
def test_a_key_stays_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, is_own: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / ".run", address=f"http://{host}:8123")
    assert (find_address({}).run_folder == Path(".run")) is is_own


@pytest.mark.parametrize("key", ["a b", "schlüssel", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(click.UsageError) as raised:
        read_key({"TRUTHGPT_API_KEY": key})
    assert key not in raised.value.message


# -- what goes wrong


def test_no_service_at_the_address() -> None:
    with ServiceClient(Address(f"http://127.0.0.1:{free_port()}", "")) as client:
        assert "start it with `make serve`" in fault(client, "/ready").message


def test_the_key_is_sent_and_never_shown() -> None:
    with serve({"/ready": Answer(envelope("no such key", "invalid_api_key"), 401)}) as service:
        with ServiceClient(Address(service.url, ""), KEY) as client:
            message = fault(client, "/ready").message
        with ServiceClient(Address(service.url, "")) as client:
            assert "set TRUTHGPT_API_KEY" in fault(client, "/ready").message
    assert service.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert "authorization" not in service.requests[1].headers
    assert message == "no such key: check TRUTHGPT_API_KEY"


def test_an_unknown_model_comes_with_the_nearest_names() -> None:
    missing = Answer(envelope("The model 'stroy' does not exist", "model_not_found", "model"), 404)
    answers = {"/v1/infer": missing, "/v1/models": model_list("echo", "shapes", "story")}
    with serve(answers) as service, ServiceClient(Address(service.url, "")) as client:
        found = fault(client, "/v1/infer", model="stroy")
    assert found.code == "model_not_found"
    assert "did you mean story?" in found.message
    assert "models: echo, shapes, story" in found.message


def test_what_the_service_says_is_shown() -> None:
    busy = Answer(envelope("the queue is\n full \x1b[31m", "overloaded"), 429)
    starting = Answer(envelope("The model 'a' is starting", "model_unavailable"), 503)
    with (
        serve({"/full": busy, "/starting": starting}) as service,
        ServiceClient(Address(service.url, "")) as client,
    ):
        assert fault(client, "/full").message == "the queue is full"
        assert "`truthgpt why a`" in fault(client, "/starting", model="a").message


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>", content_type="text/html"),
        Answer(b"<html>", 502, "text/html"),
        Answer({"error": 5}, 500),
    ],
)
def test_another_program_at_the_address_is_told(answer: Answer) -> None:
    with (
        serve({"/ready": answer}) as service,
        ServiceClient(Address(service.url, "TRUTHGPT_URL")) as client,
    ):
        message = fault(client, "/ready").message
    assert "is that the address of the service? (from TRUTHGPT_URL)" in message


def test_a_stream_yields_events_and_ends_with_its_error() -> None:
    chunk = {"text": "a\u2028b\x85c"}
    raw = f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode()
    halves = [raw[:9], raw[9:], b": a comment\n\n", *events(envelope("it broke"), done=False)]
    with (
        serve({"/v1/x": Answer(pieces=halves, content_type=EVENTS)}) as service,
        ServiceClient(Address(service.url, "")) as client,
        client.stream("/v1/x", {"model": "a"}) as found,
    ):
        assert next(found) == chunk
        with pytest.raises(ServiceFault, match="it broke"):
            next(found)
    assert service.requests[0].body == {"model": "a", "stream": True}


def test_a_stream_that_is_none_is_told() -> None:
    with (
        serve({"/v1/x": Answer({"choices": []})}) as service,
        ServiceClient(Address(service.url, "")) as client,
        pytest.raises(ServiceFault, match="no stream of events"),
        client.stream("/v1/x", {}),
    ):
        pass
