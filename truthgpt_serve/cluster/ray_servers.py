"""Where the servers in Ray Serve's processes listen, and what they answer beside the queue.

Ray lets replicas and its fallback proxy listen on the service's own host, which may be every
address, and gives each replica a gRPC server on every address, which unpickles what it gets. It has
a setting for neither, so this file takes the place of the functions that open them, in the process
that calls it. The one file that changes Ray Serve.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

from truthgpt_serve.cluster.held_requests import HeldRequests
from truthgpt_serve.cluster.old_clients import OldClientsProtocol
from truthgpt_serve.cluster.proxy_answers import ProxyAnswers
from truthgpt_serve.http.client_limits import ClientLimits
from truthgpt_serve.http.cors import ANY
from truthgpt_serve.http.probes import Probes, refuse_metrics

LOOPBACK = "127.0.0.1"
CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Ray calls the function that it names in each process that is about to open an HTTP server."""
GRPC_VARIABLE = "RAY_SERVE_USE_GRPC_BY_DEFAULT"
TICK_S = 0.5
"""How often a server writes the date of its answers anew, and sees that it is to end."""
_START_HTTP, _ADD_GRPC_PORT = "start_asgi_http_server", "add_port_to_grpc_server"
ACCESS_FIELD = "serve_access_log"
"""The field by which Ray Serve knows records of its access log."""
_FALLBACK_PORT = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")

Start = Callable[..., Awaitable[tuple[Any, Any]]]
Wrap = Callable[[Any], Any]
WrapMounted = Callable[[Any, str], Any]

_probed: tuple[Any, Collection[str], Wrap, WrapMounted] | None = None


def own_addresses() -> list[str]:
    """Returns where a server of this process is reached: by this node, and by its cluster's others.

    HAProxy reaches the replicas of its own node at the loopback address.
    """
    import ray

    address = str(ray.util.get_node_ip_address())
    return [LOOPBACK] if address in (LOOPBACK, "localhost", "::1") else [LOOPBACK, address]


def answer_aside(
    app: Any,
    paths: Collection[str],
    wrap: Wrap = lambda app: app,
    guard: WrapMounted = lambda app, mount: app,
) -> None:
    """Lets this replica's server give these paths to an application past the queue of requests.

    Call it in the replica before its server starts.

    Args:
        app: Answers these paths.
        paths: The paths.
        wrap: Goes around the application that has the queue.
        guard: Goes around all of it; takes an application and where it is mounted.
    """
    global _probed
    _probed = (app, paths, wrap, guard)
    close_replica()


def unwatched(app: Any) -> Any:
    """Has Ray's replica make no tasks of its own to cancel a request when its client leaves.

    Args:
        app: The application of Ray's replica, in which another one sees to the client.
    """

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], _UNWATCHED]  # Ray takes the last
        await app(scope, receive, send)

    return serve


def close_replica() -> None:
    """Takes the servers that this process's replica will open to the node's own addresses."""
    replica = _replica_module()
    original: Start = replica.start_asgi_http_server
    if getattr(original, "__module__", "") == __name__:
        return

    async def start(app: Any, http_options: Any, **options: Any) -> tuple[Any, Any]:
        return await _start(original, _with_probes(app), http_options, **options)

    replica.start_asgi_http_server = start
    replica.add_port_to_grpc_server = _add_grpc_port
    if not isinstance(replica.logger, _OwnLines):
        replica.logger = _OwnLines(replica.logger)


class _OwnLines:
    """The logger of Ray's replica without a line for each request.

    The access log's are ours (`telemetry/access_log.py`), which drops Ray's; made to be dropped,
    they take a twentieth of a busy replica's time.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def info(self, message: object, *args: object, **options: Any) -> None:
        if not (options.get("extra") or {}).get(ACCESS_FIELD):
            self._logger.info(message, *args, **{"stacklevel": 2, **options})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


def _with_probes(app: Any) -> Any:
    """Returns the application of Ray's replica, with the replica's probes in front of it."""
    if _probed is None:
        return app
    prefix = getattr(getattr(app, "__self__", None), "_route_prefix", None) or ""
    probed, paths, wrap, guard = _probed
    mount = prefix.rstrip("/")
    return guard(Probes(wrap(app), probed, mount, paths), mount)


def _add_grpc_port(server: Any, address: str) -> int:
    """Opens no port where the service does not use it: requests between processes are HTTP."""
    from ray._common.tls_utils import add_port_to_grpc_server

    if os.environ.get(GRPC_VARIABLE, "0") != "1":
        return 0
    own = own_addresses()[-1]
    return int(add_port_to_grpc_server(server, f"[{own}]:0" if ":" in own else f"{own}:0"))


def mend_print() -> None:
    """Has `print` write its arguments to files as they are, in a replica of Ray Serve.

    Ray's own `print` of replicas writes them to any file but the standard ones as one tuple, and so
    does every traceback that is formatted with it: those in the logs cannot be read.
    """
    module = importlib.import_module("ray.serve._private.logging_utils")
    redirected = builtins.print
    if redirected is not getattr(module, "redirected_print", None):
        return
    plain = module.buildin_print

    def write(*objects: Any, file: Any = None, **options: Any) -> None:
        target = redirected if file in (None, sys.stdout, sys.stderr) else plain
        target(*objects, file=file, **options)

    builtins.print = write


def proxy_callback() -> list[Any]:
    """Changes the server of Ray's Python proxy; Ray calls it (`CALLBACK_VARIABLE`).

    Behind HAProxy it is the fallback, and listens on the node's own addresses.

    Returns:
        No middlewares: the proxy's application is wrapped as its server starts.
    """
    for names in _proxy_globals():
        original: Start = names[_START_HTTP]
        if getattr(original, "__module__", "") != __name__:
            names[_START_HTTP] = _proxy_start(original)
    return []


def _proxy_start(original: Start) -> Start:
    async def start(app: Any, http_options: Any, **options: Any) -> tuple[Any, Any]:
        if http_options.port == _fallback_port():
            held = HeldRequests(refuse_metrics(app), [ANY])  # it knows no `cors`
            answers = ProxyAnswers(ClientLimits(held, [ANY]), [ANY])
            return await _start(original, answers, http_options, **options)
        answers = ProxyAnswers(ClientLimits(HeldRequests(app, [ANY]), [ANY]), [ANY])
        task, server = await original(answers, http_options, **options)
        server.config.http = OldClientsProtocol
        return task, server

    return start


def _proxy_globals() -> list[dict[str, Any]]:
    """Returns the globals of the proxy's class in this process: Ray sends the class by value.

    Ray calls this in replicas too, which have none.
    """
    from ray._private.worker import global_worker

    loaded = global_worker.function_actor_manager._loaded_actor_classes.values()
    # Ray wraps the class in another one, and its methods in others.
    classes = [base for cls in loaded for base in cls.__mro__]
    found = [getattr(base.__init__, "__globals__", {}) for base in classes]
    return [names for names in found if _START_HTTP in names]


def _fallback_port() -> int:
    return int(getattr(importlib.import_module("ray.serve._private.constants"), _FALLBACK_PORT))


async def _start(original: Start, app: Any, http_options: Any, **options: Any) -> tuple[Any, Any]:
    """Starts a server as Ray does, on each of the node's own addresses, and for old clients."""
    first, *others = own_addresses()
    listeners: list[socket.socket] = []
    try:
        for address in others:
            listeners.append(_listener(address, http_options.port))
        own = http_options.model_copy(update={"host": first})
        task, server = await original(app, own, **options)
    except BaseException as error:
        for listener in listeners:
            listener.close()
        if isinstance(error, OSError):  # Ray tries another port then
            raise RuntimeError(f"Failed to bind to port {http_options.port}.") from error
        raise
    _listen_too(server, listeners)
    server.main_loop = partial(_tick, server)
    server.config.http = OldClientsProtocol
    return task, server


async def _tick(server: Any) -> None:
    """Runs uvicorn's server until it is to end: it looks ten times a second, for a date each."""
    while not await server.on_tick(0):
        await asyncio.sleep(TICK_S)


def _listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener


def _listen_too(server: Any, listeners: list[socket.socket]) -> None:
    """Adds sockets to uvicorn's server, whose task has not begun to run yet."""
    startup = server.startup

    async def start_all(sockets: list[socket.socket] | None = None) -> None:
        await startup(sockets=[*(sockets or []), *listeners])

    if listeners:
        server.startup = start_all


def _replica_module() -> Any:
    module = importlib.import_module("ray.serve._private.replica")
    for function in (_START_HTTP, _ADD_GRPC_PORT):
        if not callable(getattr(module, function, None)):
            raise RuntimeError(
                f"{module.__name__}.{function} is gone: adapt "
                "truthgpt_serve/cluster/ray_servers.py to this version of Ray "
                "(2.60.0 is the one it was written for)"
            )
    return module
