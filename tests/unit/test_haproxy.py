"""HAProxy as the service starts it closes the way to the model when the client leaves."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from truthgpt_serve import haproxy
from truthgpt_serve.local_cluster import LocalCluster, free_port

OPTIONS = ("abortonclose", "splice-request", "splice-response", "http-no-delay")
"""Those of Ray's own configuration that decide what happens when a client closes."""
BODY = b'{"model": "echo"}'
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
LIMIT_S = 10


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[int, threading.Event, threading.Event]]:
    """A server that reads and never answers; yields its port and what it has seen."""
    has_body, is_closed = threading.Event(), threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(ConnectionResetError):
            data = b""
            while piece := connection.recv(4096):
                data += piece
                if data.endswith(BODY):
                    has_body.set()
        is_closed.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1], has_body, is_closed


@contextlib.contextmanager
def running_haproxy(folder: Path, server_port: int) -> Iterator[int]:
    port = free_port()
    options = "\n".join(f"  option {option}" for option in OPTIONS)
    config = folder / "haproxy.cfg"
    config.write_text(
        f"defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n{options}\n"
        f"frontend all\n  bind 127.0.0.1:{port}\n  default_backend model\n"
        f"backend model\n  server one 127.0.0.1:{server_port}\n"
    )
    command = [str(haproxy.program_path()), "-db", "-f", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "HAProxy does not start"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@pytest.mark.parametrize("pause_s", [0, 0.2])
def test_a_client_that_leaves_is_noticed(tmp_path: Path, pause_s: float) -> None:
    with (
        silent_server() as (server_port, has_body, is_closed),
        running_haproxy(tmp_path, server_port) as port,
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD)
            time.sleep(pause_s)
            client.sendall(BODY)
            assert has_body.wait(LIMIT_S)
            assert not is_closed.is_set()
        assert is_closed.wait(LIMIT_S)


def test_a_cluster_uses_the_program() -> None:
    path = haproxy.program_path()
    assert path.parent == Path(sys.executable).parent
    cluster = LocalCluster(None)
    try:
        assert cluster.env[haproxy.BINARY_VARIABLE] == str(path)
    finally:
        cluster.close()
