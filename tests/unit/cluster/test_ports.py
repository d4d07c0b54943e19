"""Ports that are handed out: free, and each to one caller."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from truthgpt_serve.cluster import ports

RANGE = range(31500, 31510)
"""None of those from which tests that run beside this one are given theirs."""
OTHERS = """
from truthgpt_serve.cluster import ports

ports.PORTS = range(31500, 31510)
try:
    ports.free_port()
except OSError as error:
    print(error)
"""


def take_all() -> set[int]:
    taken = set()
    while True:
        try:
            taken.add(ports.free_port())
        except OSError:
            return taken


def test_no_port_is_given_twice_to_this_process_or_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports, "PORTS", RANGE)
    with socket.create_server(("127.0.0.1", RANGE.start)):
        taken = take_all()
    assert taken == {*RANGE} - {RANGE.start}
    with socket.create_server(("127.0.0.1", RANGE.start)):
        others = subprocess.run(
            [sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=60, check=True
        )
    assert others.stdout == "no free port from 31500 to 31509\n"


def test_a_port_that_was_given_is_free_for_its_server() -> None:
    port = ports.free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert ports.is_answered(port)
        assert ports.busy_ports("127.0.0.1", [port]) == [port]
