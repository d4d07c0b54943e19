"""Addresses and keys: given, found on this machine, and kept private."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import click
import pytest

from tests.support.cli_service import (
    write_run,
)
from truthgpt_serve.cli._service.address import Address, find_address, read_key
from truthgpt_serve.cluster.processes import read_process
from truthgpt_serve.cluster.service.run_file import RunFile


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
