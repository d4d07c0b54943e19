"""Has HAProxy read `model` itself and send a request straight to its model, without the router.

Works on the lines of the configuration that Ray Serve writes. What comes to a model in this way is
what comes to `/models/<name>`: its path is rewritten, and HAProxy sees its connections in the same
backend.

- Only a `POST` with a JSON body that fits into HAProxy's buffer, to a route that every request for
  a model has, whose top-level `model` is the name of an application with a replica. All else goes
  to the router: adapters and aliases, models without a replica, forms, long or compressed bodies,
  requests of browsers from other pages, whose origin the router checks, and bodies that may say
  `model` twice.
- Only while the routers say so, once a second, with how many requests each model holds. What is
  more is answered 429 (`queues`).
- What routers said stays when HAProxy is replaced, as it is when a router has died: without it
  requests for models would wait for the next router.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlencode

from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, ROUTERS, insert, section
from truthgpt_serve.cluster.haproxy.models import find_backends, up_section
from truthgpt_serve.cluster.haproxy.queues import (
    BUFFER_BYTES,
    MAX_BODY_BYTES,
    held_variable,
    refuse_full,
    watch_queues,
)
from truthgpt_serve.http.routes import ROUTES

MAP_NAME = "models.map"
NEWS_PATH = "/-/routes"
LIMIT_KEY, MODEL_KEY = "direct", "model."
"""In the query of the routers' request: the longest body, and how many requests a model holds."""

_BUFFER = re.compile(r"^\s*tune\.bufsize \d+$")
_TWICE = r'(?s)"model"[ \t\r\n]*:.*"model"[ \t\r\n]*:'
_ESCAPED = r"\\u00(00|64|65|6[cCdDfF])"
"""A key of escaped letters is `model` too; clients do not escape these letters. And the map takes a
name for another one that goes on behind a zero byte, all of which would be put into the path."""
WAY_HEADER = "x-truthgpt-way"
"""A request that has it goes through the router, whatever else it is: for comparisons."""
_OTHERWISE = (WAY_HEADER, "origin", "content-encoding", "transfer-encoding", "expect", "upgrade")
"""Headers of requests that need the router."""
_IGNORE_CLIENT = "x-request-disconnect-disabled"
"""It would have Ray Serve go on for a client that left; the router does not pass it on either."""
_ANTHROPIC = "/v1/messages"
_FOUND = "{ var(txn.direct) -m found }"
_LIMIT = "proc.direct"


def direct_paths() -> list[str]:
    """Returns the routes of requests that may go straight to a model.

    Those of the other APIs are not among them: they do not name `model`, or the router translates.
    """
    return [
        route.path
        for route in ROUTES
        if route.methods == ("POST",)
        and {"service", "model"} <= {*route.addresses}
        and "{" not in route.path
        and not route.path.startswith(_ANTHROPIC)
    ]


def news_query(
    max_body_bytes: int, held: Mapping[str, int], more: Mapping[str, str] | None = None
) -> str:
    """Returns the query by which a router says what may go straight to the models.

    Args:
        max_body_bytes: The longest body; 0 for no request at all.
        held: How many requests each model holds, by name.
        more: Further news.
    """
    models = {MODEL_KEY + name: str(number) for name, number in held.items()}
    return urlencode(
        {LIMIT_KEY: str(min(max_body_bytes, MAX_BODY_BYTES)), **models, **(more or {})}
    )


def send_direct(lines: list[str], folder: Path, known: Mapping[str, str]) -> None:
    """Adds the rules for requests that go straight to their model.

    Args:
        lines: The configuration, which is changed.
        folder: Where the map of models is; `write_map` writes it.
        known: The values of variables in the process that is replaced.
    """
    backends = find_backends(lines)
    if not backends:
        return
    start, end = section(lines, "global")
    lines[start:end] = [
        f"    tune.bufsize {BUFFER_BYTES}" if _BUFFER.match(line) else line
        for line in lines[start:end]
    ]
    told = {name: known[name] for name in direct_variables(lines) if known.get(name, "").isdigit()}
    insert(lines, "global", *(f"set-var {name} int({value})" for name, value in told.items()))
    watch_queues(lines, backends)
    insert(lines, ROUTERS, *_news_rules(backends))
    insert(lines, CLIENTS, *_rules(backends, folder))


def direct_variables(lines: list[str]) -> list[str]:
    """Returns the names of the variables that hold what routers said, of all models here."""
    return [_LIMIT, *(held_variable(backend) for backend in find_backends(lines).values())]


def write_map(lines: Iterable[str]) -> str:
    """Returns the text of the map from models to the sections that say whether a replica is up."""
    return "".join(
        f"{name} {up_section(backend)}\n" for name, backend in find_backends([*lines]).items()
    )


def _is_for(name: str) -> str:
    """Returns the conditions of a request that goes straight to a model."""
    return f"{_FOUND} {{ var(txn.model) -m str {name} }}"


def _news_rules(backends: Mapping[str, str]) -> list[str]:
    told = f"{{ path {NEWS_PATH} }} {{ urlp({LIMIT_KEY}) -m found }}"
    rules = [f"http-request set-var({_LIMIT}) urlp({LIMIT_KEY}),add(0) if {told}"]
    for name, backend in backends.items():
        key, held = MODEL_KEY + name, held_variable(backend)
        rules += [
            f"http-request set-var({held}) urlp({key}),add(0) if {told}",
            f"http-request unset-var({held}) if {told} !{{ urlp({key}) -m found }}",
        ]
    return rules


def _conditions() -> list[str]:
    """Returns the conditions of requests whose `model` is read, by name: a line has 64 words."""
    json_type = r"req.hdr(content-type) -m reg -i ^application/json[[:space:]]*(;|$)"
    others = (
        *(f"req.hdr({name}) -m found" for name in _OTHERWISE),
        "req.hdr_cnt(content-type) gt 1",
        "req.hdr_cnt(content-length) gt 1",
        f"req.body -m reg '{_TWICE}'",
        f"req.body -m reg '{_ESCAPED}'",
    )
    return [
        f"acl direct_route path {' '.join(direct_paths())}",
        f"acl direct_on var({_LIMIT}) -m found",
        f"acl direct_json {json_type}",
        f"acl direct_short req.hdr_val(content-length),sub({_LIMIT}) le 0",
        *(f"acl direct_other {other}" for other in others),
    ]


def _rules(backends: Mapping[str, str], folder: Path) -> list[str]:
    models = folder / MAP_NAME
    forwarded = {"host": "%[req.hdr(host)]", "proto": "http", "prefix": "/"}
    return [
        f"http-request del-header {_IGNORE_CLIENT}",
        *_conditions(),
        "http-request set-var(txn.model) req.body,json_query('$.model') "
        "if METH_POST direct_route direct_on direct_json direct_short !direct_other",
        f"http-request set-var(txn.direct) var(txn.model),map_str({models}) "
        "if { var(txn.model) -m found }",
        f"http-request unset-var(txn.direct) if {_FOUND} {{ var(txn.direct),nbsrv lt 1 }}",
        *(
            f"http-request unset-var(txn.direct) if {_is_for(name)} "
            f"!{{ var({held_variable(backend)}) -m found }}"
            for name, backend in backends.items()
        ),
        *refuse_full(backends, models, _FOUND, "txn.model"),
        *(
            f"http-request set-header x-forwarded-{name} {value} if {_FOUND} "
            f"!{{ req.hdr(x-forwarded-{name}) -m found }}"
            for name, value in forwarded.items()
        ),
        f"http-request set-path /models/%[var(txn.model)]%[path] if {_FOUND}",
    ]
