"""Bounds what clients can take of HAProxy, and gives the routers a way of their own through it.

Works on the lines of the configuration that Ray Serve writes; starts nothing.

- A request comes through HAProxy twice: from the client to a router, and from the router to a
  model. With one limit for both, clients fill it, the routers' requests find no room, and nothing
  is answered any more. The routers have a frontend of their own, on a socket in the file system.
- A connection is held only as long as something moves on it: a head must be there within 10 s. A
  request goes on to a router or a model when its body is there, or fills a buffer: slow
  clients take up neither.
- More requests than all models hold, as the routers say once a second, and more of one key than
  others leave it (`credentials`), are answered 429 here, where
  that costs a hundredth of what a request costs: at once, but for a client that asks again on the
  same connection before `Retry-After` has passed. Its answer is held: such clients would otherwise
  keep HAProxy and themselves busy with nothing else.
- `Retry-After` is when a place comes to this client, as `queue_full.Promises` computes it; how fast
  places come stands in the answers of replicas.
- A replica is alive while its port takes connections. One that is asked over HTTP answers late when
  it is busy, and is taken out when it is needed most.
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from truthgpt_serve.cluster.haproxy.configuration import (
    CLIENTS,
    ROUTERS,
    UnknownConfigurationError,
    insert,
    section,
)
from truthgpt_serve.cluster.haproxy.credentials import (
    NUM_COUNTERS,
    credential_tables,
    find_credential,
    is_greedy,
    track_credential,
)
from truthgpt_serve.cluster.haproxy.places import ALL
from truthgpt_serve.cluster.haproxy.refusals import IS_OVER, RETRY, is_over, refuse
from truthgpt_serve.http.retriable import READABLE
from truthgpt_serve.queue_full import ALL_FULL, CLIENT_HEADER

SOCKET_NAME = "hop.sock"
MAX_SOCKET_PATH = 90
"""The longest path of a socket: the system allows 107 bytes, and HAProxy adds some of its own."""
REQUESTS_VARIABLE, DEFAULT_REQUESTS = "TRUTHGPT_PROXY_MAX_REQUESTS", 2048
CLIENTS_VARIABLE, DEFAULT_CLIENTS = "TRUTHGPT_PROXY_MAX_CLIENTS", 32768
CAPACITY_HEADER = "x-truthgpt-capacity"
"""How many requests the models hold, in the routers' request for HAProxy's routes."""
KEYED_HEADER = "x-truthgpt-keyed"
"""With it: 1 where all models ask for keys, else 0."""
MOST_SHARES = 4
"""Of the requests that are at work on routers one key may have so many times what is left."""
HEAD_TIMEOUT_S = 10
MAX_HEADERS = 100
"""Of a client's request, on every way; HAProxy and the router add some on theirs."""
_ADDED_HEADERS = 50
BODY_TIMEOUT_S = 600
"""For a body that fits into HAProxy's buffer; one that stops is closed long before."""
CROWDED_SHARE = 0.75
"""From this share of its connections on, clients are told to close theirs after each answer."""

POOL_PERCENT = 90
"""Of the files that may be open: while fewer are, connections to replicas are kept, as many as
there were requests at work at the same time. At HAProxy's own quarter, many idle clients have it
open a new one for each request.
"""
_OTHER_CONNECTIONS = 64
_FULL = "all_full"
"""The section that refuses."""
_MAXCONN = re.compile(r"^\s*maxconn \d+$")
_BIND = re.compile(r"^(\s*)bind \S+$")
_LEFT_OUT = re.compile(r"^\s*(option httpchk GET |http-check expect status |option splice-)")
"""Checks over HTTP, and splice(2), which is off and would still have files kept for it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How the connections of one HAProxy are shared out.

    Attributes:
        total: All of them.
        clients: Those of clients.
        routers: Those of routers on their way to models.
        requests: Requests that are at work on routers.
    """

    total: int
    clients: int
    routers: int
    requests: int


def share_out(max_clients: int, max_requests: int, num_files: int) -> Limits:
    """Returns the limits of a HAProxy that may open a number of files.

    A connection of a client is one file as long as it carries no request: what is idle, or slow,
    costs no more. A request takes three more: to a router, from the router, and to a model.

    Args:
        max_clients: Most connections of clients.
        max_requests: Most requests at work on routers.
        num_files: Most open files.
    """
    requests = max(1, min(max_requests, num_files // 8))
    routers = (
        requests + requests // 2
    )  # the rest is for those that routers keep while they are idle
    left = num_files - num_files // 32 - requests - 2 * routers
    clients = max(64, min(max_clients, left))
    return Limits(clients + routers + _OTHER_CONNECTIONS, clients, routers, requests)


def read_setting(variable: str, default: int) -> int:
    """Returns a limit that the environment sets."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() and int(value) else default


def num_allowed_files() -> int:
    """Returns how many files this process may open at most."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 1_048_576 if hard == resource.RLIM_INFINITY else hard


def limit(lines: list[str], folder: Path, root: str | None) -> None:
    """Bounds connections, heads and requests, and adds the routers' frontend.

    Args:
        lines: The configuration, which is changed.
        folder: Where the routers' socket is put.
        root: Name of the routers' backend, or None while there is none.

    Raises:
        UnknownConfigurationError: The configuration is not what Ray 2.60 writes.
    """
    lines[:] = [line for line in lines if not _LEFT_OUT.match(line)]
    limits = _limit_total(lines)
    insert(lines, "defaults", f"timeout http-request {HEAD_TIMEOUT_S}s")
    _add_routers_frontend(lines, folder, limits)
    crowded = int(limits.clients * CROWDED_SHARE)
    insert(
        lines,
        CLIENTS,
        f"maxconn {limits.clients}",
        f"http-after-response set-header connection close if {{ fe_conn gt {crowded} }}",
    )
    if root is not None and f"backend {root}" in lines:
        _refuse_what_is_too_much(lines, root, limits.requests, crowded)


def _refuse_what_is_too_much(lines: list[str], root: str, most: int, crowded: int) -> None:
    """Bounds the requests that are in the routers' backend.

    A refusal is held only as long as there are connections to spare. What only reads has a
    reserve: an overloaded service must still say that it lives. So has what a browser asks
    beforehand: a page could not read the refusal of that.
    """
    insert(
        lines,
        ROUTERS,
        *(
            f"http-request set-var({name}) req.hdr({header}),add(0) "
            f"if {{ path /-/routes }} {{ req.hdr({header}) -m found }}"
            for name, header in (("proc.capacity", CAPACITY_HEADER), ("proc.keyed", KEYED_HEADER))
        ),
    )
    work = "!METH_GET !METH_OPTIONS !{ path_beg /models/ }"
    taken = f"be_conn({root}),sub(proc.capacity)"
    conditions = (
        f"{work} {{ be_conn({root}) ge {most} }}",
        f"{work} {{ var(proc.capacity) -m found }} {{ {taken} ge 0 }}",
        f"{work} {is_greedy(taken)}",
        f"{work} {is_greedy(f'be_conn({root}),sub({most}),mul({MOST_SHARES})')}",
    )
    insert(lines, "global", f"tune.stick-counters {NUM_COUNTERS}")
    insert(
        lines,
        CLIENTS,
        *find_credential(f"{work} {{ var(proc.keyed) -m int 1 }}"),
        *is_over(_FULL, conditions),
        track_credential(f"!{IS_OVER}"),
    )
    lines += credential_tables()
    lines += refuse(
        _FULL,
        ALL_FULL.format(RETRY),
        ALL,
        "proc.capacity",
        headers=(("cache-control", "no-cache"), *READABLE),
        at_once=f"{{ fe_conn({CLIENTS.removeprefix('frontend ')}) gt {crowded} }}",
    )
    reserve = most + most // 8
    insert(
        lines,
        f"backend {root}",
        f"http-request return status 429 default-errorfiles if {{ be_conn gt {reserve} }}",
        f"http-request set-header {CLIENT_HEADER} %[src]:%[src_port]",
    )


def wait_for_bodies(lines: list[str]) -> None:
    """Has a client's request go on when its body is there, or fills a buffer."""
    insert(lines, CLIENTS, f"http-request wait-for-body time {BODY_TIMEOUT_S}s if !METH_GET")


def limit_headers(lines: list[str]) -> None:
    """Bounds how many headers a client's request has, before any is added."""
    insert(lines, "global", f"tune.http.maxhdr {MAX_HEADERS + _ADDED_HEADERS}")
    insert(
        lines,
        CLIENTS,
        f"http-request return status 400 default-errorfiles if {{ req.fhdr_cnt gt {MAX_HEADERS} }}",
    )


def _limit_total(lines: list[str]) -> Limits:
    for at in range(*section(lines, "global")):
        if _MAXCONN.match(lines[at]):
            limits = share_out(
                read_setting(CLIENTS_VARIABLE, DEFAULT_CLIENTS),
                read_setting(REQUESTS_VARIABLE, DEFAULT_REQUESTS),
                num_allowed_files(),
            )
            # HAProxy counts two files for each connection, and would not start where that is more
            # than it may open; most of them are idle and take one.
            lines[at : at + 1] = [
                "    no strict-limits",
                f"    maxconn {limits.total}",
                f"    tune.pool-high-fd-ratio {POOL_PERCENT}",
                f"    tune.pool-low-fd-ratio {POOL_PERCENT - 10}",
            ]
            return limits
    raise UnknownConfigurationError("the section `global` has no `maxconn`")


def _add_routers_frontend(lines: list[str], folder: Path, limits: Limits) -> None:
    """Copies the clients' frontend, so that both lead to the same models."""
    path = str(folder / SOCKET_NAME)
    start, end = section(lines, CLIENTS)
    body = lines[start:end]
    binds = [at for at, line in enumerate(body) if _BIND.match(line)]
    if len(binds) != 1:
        raise UnknownConfigurationError(f"`{CLIENTS}` has {len(binds)} lines `bind`, not one")
    if len(path) > MAX_SOCKET_PATH:
        raise UnknownConfigurationError(f"the path of its folder is too long for a socket: {path}")
    body[binds[0]] = f"    bind unix@{path} mode 600"
    lines[end:end] = [ROUTERS, f"    maxconn {limits.routers}", *body]
