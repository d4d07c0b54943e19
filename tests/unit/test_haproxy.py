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
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

from scripts.serve import PROXY_PORTS
from truthgpt_serve import haproxy
from truthgpt_serve.local_cluster import LocalCluster, free_port
from truthgpt_serve.unreached import is_unreached

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


RAY_CONFIGURATION = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    errorfile 502 {page}
    errorfile 503 {page}
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_http-echo path_beg /models/echo/
    acl is_http-router path_beg /
    acl is_http-router path /
    use_backend http-echo if is_http-echo
    use_backend http-router if is_http-router
backend http-echo
    default-server inter 5s check
    server here 127.0.0.1:30001 check
    server there 192.0.2.3:30001 check observe layer4 error-limit 3 on-error mark-down
backend http-router
    default-server inter 5s check
    server here {here} check
    server there 192.0.2.3:30000 check observe layer4 error-limit 3 on-error mark-down
    server fallback 192.0.2.4:8500 check backup
"""


def test_only_the_routers_elsewhere_stand_in() -> None:
    text = RAY_CONFIGURATION.format(port=8000, here="127.0.0.1:30000", page="/r/500.http")
    adapted = haproxy.adapt(text, Path("/r/503.http")).splitlines()
    added = [line.strip() for line in adapted if line not in text.splitlines()]
    there = "server there 192.0.2.3:30000 check observe layer4 error-limit 3 on-error mark-down"
    assert added == [*haproxy.KEEPALIVE, "errorfile 503 /r/503.http", f"{there} backup"]
    assert adapted.index("defaults") + 1 == adapted.index(f"    {haproxy.KEEPALIVE[0]}")


def test_without_a_router_here_all_are_used() -> None:
    text = RAY_CONFIGURATION.format(port=8000, here="192.0.2.5:30000", page="/r/500.http")
    assert haproxy.adapt(text, Path("/r/503.http")).count(" backup") == 1


def test_haproxy_takes_the_adapted_file(tmp_path: Path) -> None:
    path, theirs = tmp_path / "haproxy.cfg", tmp_path / "500.http"
    theirs.write_bytes(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    settings = {"port": free_port(), "here": "127.0.0.1:30000", "page": theirs}
    path.write_text(RAY_CONFIGURATION.format(**settings))
    arguments = haproxy.adapt_arguments(["-db", "-f", str(path), "-sf", "7"])
    adapted = tmp_path / "haproxy.adapted.cfg"
    assert arguments == ["-db", "-f", str(adapted), "-sf", "7"]
    assert sorted(tmp_path.iterdir()) == [theirs, tmp_path / "503.http", adapted, path]
    checked = subprocess.run(
        [str(haproxy.program_path()), "-c", "-f", str(path)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_where_no_replica_takes_a_connection_the_answer_says_so(tmp_path: Path) -> None:
    answer = ask(tmp_path, free_port())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert is_unreached(answer.headers.raw)
    assert answer.json()["error"]["code"] == "model_unavailable"


def test_a_replica_that_broke_off_had_the_request(tmp_path: Path) -> None:
    """So the answer is without the mark: Ray's own page."""

    def serve(listener: socket.socket) -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        answer = ask(tmp_path, listener.getsockname()[1])
    assert answer.status_code == 500
    assert not is_unreached(answer.headers.raw)


def ask(folder: Path, server_port: int) -> httpx.Response:
    """Returns what a client gets of HAProxy with one server, which is at this port."""
    theirs = folder / "500.http"
    theirs.write_bytes(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    port = free_port()
    text = RAY_CONFIGURATION.format(port=port, here=f"127.0.0.1:{server_port}", page=theirs)
    text = text.replace(" check", "")  # a server that is not known to be down
    path = folder / "haproxy.cfg"
    path.write_text("\n".join(line for line in text.splitlines() if "192.0.2" not in line) + "\n")
    with started(path, port):
        return httpx.post(f"http://127.0.0.1:{port}/v1/x", content=b"{}", timeout=LIMIT_S)


def test_an_unknown_file_is_used_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("frontend all\n")
    assert haproxy.adapt_arguments(["-f", str(path)]) == ["-f", str(path)]
    assert "is used as it is: there is no section `defaults`" in capsys.readouterr().err


def test_rays_own_configuration_is_the_one_that_is_known() -> None:
    """Fails when a release of Ray writes its file in another way."""
    for line in (
        "defaults\n",
        "    acl is_{{ backend.name or 'unknown' }} path_beg {{ '/' if not backend.path_prefix",
        "backend {{ backend.name or 'unknown' }}\n",
        "    server {{ server.name }} {{ server.host }}:{{ server.port }} check",
        "    errorfile 503 {{ config.error_file_path }}\n",
    ):
        assert line in HAPROXY_CONFIG_TEMPLATE


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
