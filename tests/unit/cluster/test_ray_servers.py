"""Servers of Ray Serve's processes listen on the node's own addresses, by Ray's own functions."""

from __future__ import annotations

import asyncio
import builtins
import errno
import importlib
import io
import logging
import socket
import traceback
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from ray.serve.config import HTTPOptions

from truthgpt_serve.cluster import ray_servers
from truthgpt_serve.cluster.old_clients import OldClientsProtocol
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_bytes

replica: Any = importlib.import_module("ray.serve._private.replica")
SECOND = "127.0.0.2"
"""Stands for the address of a node in its cluster's network."""


class Replica:
    """What is known of Ray's replica: the application is a method of an object with a prefix."""

    _route_prefix = "/models/m"

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, b"queued", b"text/plain")


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send_bytes(send, b"aside", b"text/plain")


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "start_asgi_http_server", replica.start_asgi_http_server)
    monkeypatch.setattr(replica, "add_port_to_grpc_server", replica.add_port_to_grpc_server)
    monkeypatch.setattr(ray_servers, "_probed", None)


async def start(port: int) -> tuple[Any, Any]:
    options = HTTPOptions(host="0.0.0.0", port=port, middlewares=[])
    loop = asyncio.get_running_loop()
    task, server = await replica.start_asgi_http_server(Replica().serve, options, event_loop=loop)
    while not server.started:
        await asyncio.sleep(0.01)
    return task, server


def addresses(server: Any) -> list[str]:
    return [sock.getsockname()[0] for each in server.servers for sock in each.sockets]


async def test_a_replica_listens_on_the_nodes_own_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_servers, "own_addresses", lambda: ["127.0.0.1", SECOND])
    ray_servers.answer_aside(answer, ("/metrics",))
    ray_servers.close_replica()  # twice changes nothing
    port = free_port()
    task, server = await start(port)
    assert addresses(server) == ["127.0.0.1", SECOND]
    async with httpx.AsyncClient() as client:
        for host in addresses(server):
            url = f"http://{host}:{port}/models/m"
            assert (await client.get(f"{url}/metrics")).text == "aside"
            assert (await client.get(f"{url}/v1/models")).text == "queued"
    server.should_exit = True
    await asyncio.wait_for(task, 10)
    for host in ("127.0.0.1", SECOND):
        with socket.socket() as probe:
            assert probe.connect_ex((host, port)) != 0


async def test_a_replica_sends_no_chunks_to_old_clients() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    ray_servers.answer_aside(stream, ("/health",))
    port = free_port()
    task, server = await start(port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /models/m/health HTTP/1.0\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    server.should_exit = True
    await asyncio.wait_for(task, 10)
    assert b"chunked" not in answer
    assert answer.endswith(b"\r\n\r\nonetwo")


async def test_a_server_looks_seldom_for_its_end() -> None:
    ray_servers.close_replica()
    task, server = await start(free_port())
    looks: list[int] = []
    look = server.on_tick

    async def on_tick(counter: int) -> bool:
        looks.append(counter)
        return bool(await look(counter))

    server.on_tick = on_tick
    await asyncio.sleep(3 * ray_servers.TICK_S)
    assert 1 <= len(looks) <= 4
    assert server.server_state.default_headers[0][0] == b"date"
    server.should_exit = True
    await asyncio.wait_for(task, 10)


@pytest.mark.parametrize("asked", [b"?0", b"?1", None])
async def test_ray_watches_no_client_of_a_replica(asked: bytes | None) -> None:
    seen: dict[str, Any] = {}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        seen.update(scope)

    headers = [(b"a", b"b")] if asked is None else [(b"x-request-disconnect-disabled", asked)]
    scope = {"type": "http", "headers": headers}
    await ray_servers.unwatched(serve)(scope, replica, replica)
    assert replica.parse_disconnect_disabled_header(dict(seen["headers"]))
    assert seen["headers"][0] == headers[0]


async def test_a_taken_port_is_one_that_ray_tries_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_servers, "own_addresses", lambda: ["127.0.0.1", SECOND])
    ray_servers.close_replica()
    with socket.create_server((SECOND, 0)) as taken:
        with pytest.raises(RuntimeError, match="Failed to bind") as caught:
            await start(taken.getsockname()[1])
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EADDRINUSE


def test_a_replica_opens_no_port_for_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        def __init__(self) -> None:
            self.ports: list[str] = []

        def add_insecure_port(self, address: str) -> int:
            self.ports.append(address)
            return 7

    monkeypatch.setattr(ray_servers, "own_addresses", lambda: ["127.0.0.1"])
    ray_servers.close_replica()
    server = Server()
    monkeypatch.setenv(ray_servers.GRPC_VARIABLE, "0")
    assert replica.add_port_to_grpc_server(server, "[::]:0") == 0
    assert server.ports == []
    monkeypatch.setenv(ray_servers.GRPC_VARIABLE, "1")
    assert replica.add_port_to_grpc_server(server, "[::]:0") == 7
    assert server.ports == ["127.0.0.1:0"]


def test_a_replica_makes_no_lines_of_rays_access_log() -> None:
    ray_servers.close_replica()
    made = []

    def note(record: logging.LogRecord) -> bool:
        made.append((record.getMessage(), record.levelname, record.funcName))
        return False

    logger = logging.getLogger("ray.serve")
    logger.addFilter(note)
    try:
        replica.logger.info("GET / 200", extra={"serve_access_log": True})
        replica.logger.info("Started %s", "HTTP", extra={"log_to_stderr": False})
        replica.logger.info("plain")
        replica.logger.warning("shutting down")
    finally:
        logger.removeFilter(note)
    here = "test_a_replica_makes_no_lines_of_rays_access_log"
    assert made == [
        ("Started HTTP", "INFO", here),
        ("plain", "INFO", here),
        ("shutting down", "WARNING", here),
    ]


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(replica, "start_asgi_http_server")
    with pytest.raises(RuntimeError, match=r"start_asgi_http_server is gone: adapt"):
        ray_servers.close_replica()


def test_the_proxys_class_is_found_as_ray_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray pickles the class by value: what is changed in its module does not reach it."""
    cloudpickle = importlib.import_module("ray.cloudpickle")
    proxy = importlib.import_module("ray.serve._private.proxy")
    monkeypatch.setattr(proxy, "start_asgi_http_server", proxy.start_asgi_http_server)
    data = cloudpickle.dumps(proxy.ProxyActor.__ray_metadata__.modified_class)
    worker = importlib.import_module("ray._private.worker").global_worker
    manager = SimpleNamespace(_loaded_actor_classes={"id": cloudpickle.loads(data)})
    monkeypatch.setattr(worker, "_function_actor_manager", manager, raising=False)
    monkeypatch.setattr(worker, "function_actor_manager", manager, raising=False)
    before = [names["start_asgi_http_server"] for names in ray_servers._proxy_globals()]
    assert len(before) >= 1
    assert ray_servers.proxy_callback() == []
    after = [names["start_asgi_http_server"] for names in ray_servers._proxy_globals()]
    assert not set(before) & set(after)


async def test_rays_proxy_without_haproxy_answers_in_the_same_form() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, b"Request timed out.", b"text/plain", status=408)

    options = HTTPOptions(host="127.0.0.1", port=free_port(), middlewares=[])
    begin = ray_servers._proxy_start(replica.start_asgi_http_server)
    task, server = await begin(late, options, event_loop=asyncio.get_running_loop())
    while not server.started:
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
    writer.write(
        b"GET /x HTTP/1.0\r\nx-request-timeout-seconds: 0.01\r\nx-request-id: \xe9\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    server.should_exit = True
    await asyncio.wait_for(task, 10)
    assert b"408 Request Timeout" in answer
    assert b'"code":"request_timeout"' in answer
    assert server.config.http is OldClientsProtocol


def test_tracebacks_are_written_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private import logging_utils

    monkeypatch.setattr(builtins, "print", logging_utils.redirected_print)
    ray_servers.mend_print()
    mended = builtins.print
    ray_servers.mend_print()
    assert builtins.print is mended
    file = io.StringIO()
    print("one", 2, sep="-", end="!\n", file=file)
    try:
        raise ValueError("broken")
    except ValueError:
        traceback.print_exc(file=file)
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["one-2!", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: broken"


def test_prints_still_go_to_serves_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray.serve._private import logging_utils

    monkeypatch.setattr(builtins, "print", logging_utils.redirected_print)
    ray_servers.mend_print()
    logger = logging.getLogger("ray.serve")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, "ray.serve"):
        print("said", "by a model")
    assert "said by a model" in caplog.text
