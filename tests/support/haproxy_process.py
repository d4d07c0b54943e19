"""A running HAProxy with the adapted configuration of Ray Serve, and servers behind it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks.haproxy_configuration import ray_configuration
from truthgpt_serve.cluster.haproxy import program as haproxy
from truthgpt_serve.cluster.haproxy.limits import SOCKET_NAME
from truthgpt_serve.cluster.ports import free_port

LIMIT_S = 90
LARGE_BYTES = 16 * 2**20
"""More than HAProxy and the system take of an answer that nobody reads."""


class Replica(ThreadingHTTPServer):
    """A server whose answers the test decides."""

    daemon_threads = True
    request_queue_size = 2048

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name = name
        self.paths: list[str] = []
        self.headers: dict[str, str] = {}
        self.more_headers: dict[str, str] = {}
        self.released = threading.Event()
        self.cut = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that leave are what is tested."""

    def end(self) -> None:
        if self.fileno() < 0:
            return
        self.released.set()
        self.shutdown()
        self.server_close()

    def refuse(self) -> None:
        """Takes no connection from now on, and keeps the port, which another test would take."""
        self.shutdown()
        self.socket.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms
    server: Replica

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        self._read_body()
        if "/wait" in self.path:
            self.server.released.wait(LIMIT_S)
        if "/flood" in self.path:
            self._flood()
            return
        if "/break" in self.path or (
            "/once" in self.path and self.server.paths.count(self.path) == 1
        ):
            self.close_connection = True
            return
        status, kind, body = 200, "application/json", json.dumps({"by": self.server.name}).encode()
        if "/text/" in self.path:
            kind, status = "text/plain", int(self.path.rpartition("/")[2])
            body = b'It is "full"\n\xc3\xa9 \\ \x01'
        if "/large" in self.path:
            body = bytes(LARGE_BYTES)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if status == 429:
            self.send_header("retry-after", "7")
        for name, value in self.server.more_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_HEAD = do_GET

    def _read_body(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if "transfer-encoding" in self.headers:
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()

    def _flood(self) -> None:
        """Sends without end; tells when that does not go on."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            self.server.cut.set()

    def log_message(self, *arguments: Any) -> None:
        """Writes nothing."""


@dataclass(frozen=True)
class Proxy:
    """A running HAProxy, its folder, and the servers behind it.

    Attributes:
        models: The replicas of the model `m`; the first is `model`.
        playgrounds: Those of the playground.
        others: Those of other applications, by the paths below which these are.
    """

    port: int
    pid: int
    folder: Path
    router: Replica
    model: Replica
    fallback: Replica
    models: tuple[Replica, ...] = ()
    playgrounds: tuple[Replica, ...] = ()
    others: Mapping[str, Replica] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), LIMIT_S)

    def over_port(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=LIMIT_S)

    def over_socket(self) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.folder / SOCKET_NAME))
        return httpx.Client(transport=transport, base_url="http://x", timeout=LIMIT_S)


@contextlib.contextmanager
def running(
    folder: Path,
    change: Callable[[str], str] = lambda text: text,
    *,
    env: Mapping[str, str] | None = None,
    num_replicas: int = 1,
    num_playgrounds: int | None = None,
    others: Iterable[str] = (),
) -> Iterator[Proxy]:
    """Runs the program with the configuration that Ray writes, `change` applied to it.

    Args:
        folder: Where its files are.
        change: Changes Ray's text.
        env: Further variables.
        num_replicas: Replicas of the model; those after the first are `model-1` and so on.
        num_playgrounds: Replicas of the playground `ui`, or None for no playground.
        others: The paths of other applications, each of which has one replica.
    """
    names = ["model", *(f"model-{number}" for number in range(1, num_replicas))]
    playgrounds = [Replica("ui") for _ in range(num_playgrounds or 0)]
    replicas = [*(Replica(name) for name in ("router", "fallback", *names)), *playgrounds]
    router, fallback, *models = replicas[: 2 + num_replicas]
    by_path = {path: Replica(path) for path in others}
    replicas += by_path.values()
    port = free_port()
    applications: dict[str, int | list[int]] = {
        "/models/m": [model.server_port for model in models],
        "/": router.server_port,
        **{path: replica.server_port for path, replica in by_path.items()},
    }
    if num_playgrounds is not None:
        applications["/ui"] = [playground.server_port for playground in playgrounds]
    path = ray_configuration(folder, port, applications, fallback=fallback.server_port)
    text = path.read_text().replace(":9101", f":{free_port()}").replace(":8404", f":{free_port()}")
    path.write_text(change(text))
    command = [str(haproxy.program_path()), "-db", "-f", str(path)]
    process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + LIMIT_S
        while True:
            assert process.poll() is None
            # The socket gets its name after the port is open.
            if _listens(port) and (folder / SOCKET_NAME).exists():
                break
            assert time.monotonic() < deadline, "HAProxy does not start"
            time.sleep(0.05)
        yield Proxy(
            port, process.pid, folder, router, models[0], fallback, tuple(models),
            tuple(playgrounds), by_path,
        )  # fmt: skip
    finally:
        process.kill()
        errors = process.communicate(timeout=LIMIT_S)[1].decode()
        for replica in replicas:
            replica.end()
    assert haproxy.PROGRAM not in errors, errors


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
