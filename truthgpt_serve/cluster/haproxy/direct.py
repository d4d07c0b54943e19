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

from truthgpt_serve.cluster.haproxy.configuration import insert, section
from truthgpt_serve.cluster.haproxy.credentials import KEYED_KEY, KEYED_MAP_NAME
from truthgpt_serve.cluster.haproxy.dispatch import answer_checks, leave_out
from truthgpt_serve.cluster.haproxy.models import UP, find_backends, track
from truthgpt_serve.cluster.haproxy.news import LIMIT_KEY, MODEL_KEY, await_news, hear
from truthgpt_serve.cluster.haproxy.queues import (
    BUFFER_BYTES,
    HELD_MAP_NAME,
    MAP_NAME,
    watch_queues,
)
from truthgpt_serve.http.routes import ROUTES

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
TOLD_MAPS = {HELD_MAP_NAME: MODEL_KEY, KEYED_MAP_NAME: KEYED_KEY}
"""What routers say of models, as numbers by name, and by what it is in their query."""
LIMIT = "proc.direct"
"""The variable with the longest body that goes straight to a model, in bytes."""


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


def send_direct(lines: list[str], folder: Path, known: Mapping[str, str]) -> None:
    """Adds the rules for requests that go straight to their model.

    Args:
        lines: The configuration, which is changed.
        folder: Where the maps of models are; `write_maps` writes them.
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
    if known.get(LIMIT, "").isdigit():
        insert(lines, "global", f"set-var {LIMIT} int({known[LIMIT]})")
    for backend in backends.values():
        track(lines, backend)
    leave_out(lines, set(backends.values()))
    answer_checks(lines)
    watch_queues(lines, folder, *_rules(folder))
    await_news(lines)
    hear(lines, f"http-request set-var({LIMIT}) urlp({LIMIT_KEY}),add(0)")
    for file, key in TOLD_MAPS.items():
        hear(lines, *_news_rules(backends, folder / file, key))


def write_maps(lines: Iterable[str], known: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the text of each map by its file's name.

    Args:
        lines: The configuration.
        known: What is in `TOLD_MAPS` in the process that is replaced.
    """
    backends = find_backends([*lines])
    maps = {MAP_NAME: backends}
    for file in TOLD_MAPS:
        told = known.get(file, {})
        maps[file] = {name: told[name] for name in backends if told.get(name, "").isdigit()}
    return {
        file: "".join(f"{name} {target}\n" for name, target in models.items())
        for file, models in maps.items()
    }


def _news_rules(models: Iterable[str], file: Path, key: str) -> list[str]:
    """Returns the rules that take over into a map what changed."""
    rules: list[str] = []
    is_told = "{ var(txn.told) -m found }"
    for name in models:
        known = f"str({name}),map_str_int({file})"
        rules += [
            "http-request unset-var(txn.told)",
            f"http-request set-var(txn.told) urlp({key}{name}),add(0)",
            f"http-request set-map({file}) {name} %[var(txn.told)] "
            f"if {is_told} !{{ {known},sub(txn.told) eq 0 }}",
            f"http-request del-map({file}) {name} if !{is_told} {{ {known} -m found }}",
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
        f"acl direct_on var({LIMIT}) -m found",
        f"acl direct_json {json_type}",
        f"acl direct_short req.hdr_val(content-length),sub({LIMIT}) le 0",
        *(f"acl direct_other {other}" for other in others),
    ]


def _rules(folder: Path) -> list[str]:
    forwarded = {"host": "%[req.hdr(host)]", "proto": "http", "prefix": "/"}
    return [
        f"http-request del-header {_IGNORE_CLIENT}",
        *_conditions(),
        "http-request set-var(txn.model) req.body,json_query('$.model') "
        "if METH_POST direct_route direct_on direct_json direct_short !direct_other",
        f"http-request set-var(txn.direct) var(txn.model),map_str({folder / MAP_NAME}) "
        f"if {{ var(txn.model),map_str_int({folder / HELD_MAP_NAME}) -m found }}",
        f"http-request unset-var(txn.direct) if {_FOUND} "
        f"{{ str({UP}),concat(,txn.direct),nbsrv lt 1 }}",
        *(
            f"http-request set-header x-forwarded-{name} {value} if {_FOUND} "
            f"!{{ req.hdr(x-forwarded-{name}) -m found }}"
            for name, value in forwarded.items()
        ),
        f"http-request set-path /models/%[var(txn.model)]%[path] if {_FOUND}",
    ]
