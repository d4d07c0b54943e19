"""Has HAProxy answer 429 where a model is full, for whom no router does.

Works on the lines of the configuration that Ray Serve writes.

- Those are requests that go straight to their model (`direct`), and those for `/models/<name>`.
- A model is full when HAProxy has as many requests at it as the routers say that it holds, once a
  second. What they said stays when HAProxy is replaced.
- Neither counted nor refused is a request that only reads, and one whose body HAProxy does not have
  as a whole: it takes its place at a replica when its body is there (`server/gathered_bodies.py`).
  A client with many bodies that take long would else have all others refused.
- Clients speak HTTP/1. In HTTP/2 one that opens no window has answers wait in HAProxy, where they
  would count for as long as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from truthgpt_serve.cluster.haproxy import promises
from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, ROUTERS, insert
from truthgpt_serve.cluster.haproxy.models import key_of, track, up_section
from truthgpt_serve.cluster.haproxy.refusals import (
    ANY,
    OVER,
    RETRY,
    RETRY_VARIABLE,
    last_variable,
    place_variable,
    quiet_variable,
    refuse,
    told_variable,
)
from truthgpt_serve.http.retriable import READABLE
from truthgpt_serve.queue_full import FULL, PLACE_HEADER

TABLE = "apart"
BUFFER_BYTES = 65536
MAX_BODY_BYTES = 49152
"""The longest body that HAProxy reads: the buffer has the request's head too."""
_MAX_MODELS = 4096
_QUEUE, _APART, _NUM_APART = "txn.queue", "txn.apart", "txn.num_apart"
"""Whose queue a request goes to; whether it is neither counted nor refused; how many are not."""
_IS_APART = f"{{ var({_APART}) -m found }}"
_IS_WHOLE = "{ internal.htx.has_eom }"
_READS = ("METH_GET", "METH_OPTIONS")
"""The former is HEAD, too."""


def held_variable(backend: str) -> str:
    """Returns the variable that says how many requests a backend's model holds."""
    return f"proc.held_{key_of(backend)}"


def watch_queues(lines: list[str], backends: Mapping[str, str]) -> None:
    """Adds what counts the requests at each model, and notes how fast places come.

    Args:
        lines: The configuration, which is changed.
        backends: The backend of each model, by name.
    """
    for backend in backends.values():
        track(lines, backend)
        insert(
            lines,
            f"backend {backend}",
            f"http-request track-sc2 str({key_of(backend)}) table {TABLE} if {_IS_APART}",
            *_learn_places(backend),
        )
    lines += [
        f"backend {TABLE}",
        f"    stick-table type string len 16 size {_MAX_MODELS} expire 1h store conn_cur",
        *promises.table(),
    ]
    insert(lines, ROUTERS, *_set_apart(*_READS, f"{{ req.body_size gt {MAX_BODY_BYTES} }}"))
    insert(lines, CLIENTS, "option disable-h2-upgrade")
    insert(lines, CLIENTS, f"http-response del-header {PLACE_HEADER}", *_readable())


def _set_apart(*conditions: str) -> list[str]:
    return [f"http-request set-var({_APART}) bool(true) if {one}" for one in conditions]


def _readable() -> list[str]:
    """Returns the rules by which pages of any origin may read a refusal; see `READABLE`."""
    return [
        f"http-after-response set-header {name} {value} if {{ var({_QUEUE}) -m found }} "
        f"{{ var({OVER}) -m bool }} {{ var(txn.origin) -m found }}"
        for name, value in READABLE
    ]


def refuse_full(backends: Mapping[str, str], models: Path, direct: str, model: str) -> list[str]:
    """Returns the rules for clients' requests, behind which nothing refuses them.

    Args:
        backends: The backend of each model, by name.
        models: The map of models.
        direct: When a request goes straight to its model; one of HAProxy's conditions.
        model: The variable with the name of that.
    """
    known = f"{{ path,field(3,/),map_str({models}) -m found }}"
    found = f"{{ var({_QUEUE}) -m found }}"
    return [
        *_set_apart(*_READS, f"!{_IS_WHOLE}"),
        f"http-request set-var({_QUEUE}) path,field(3,/) if {{ path_beg /models/ }} "
        f"!{_IS_APART} {known}",
        f"http-request set-var({_QUEUE}) var({model}) if {direct}",
        f"http-request set-header x-request-id %[uuid()] if {found} "
        "!{ req.hdr(x-request-id) -m found }",
        f"http-request set-var(txn.id) req.hdr(x-request-id) if {found}",  # a tarpit has none
        f"http-request set-var(txn.origin) req.hdr(origin) if {found}",
        *(rule for name, backend in backends.items() for rule in _count_places(name, backend)),
        *promises.recognize(_QUEUE),
        *(rule for name, backend in backends.items() for rule in _refusal(name, backend)),
    ]


def _is_for(name: str) -> str:
    """Returns the conditions of a request for a model that is counted."""
    return f"{{ var({_QUEUE}) -m str {name} }} !{_IS_APART}"


def _count_places(name: str, backend: str) -> list[str]:
    held, last = held_variable(backend), last_variable(key_of(backend))
    count = f"str({key_of(backend)}),table_conn_cur({TABLE})"
    return [
        f"http-request set-var({_NUM_APART}) {count} if {_is_for(name)}",
        *promises.count_places(_is_for(name), f"be_conn({backend}),sub({_NUM_APART})", held, last),
    ]


def _refusal(name: str, backend: str) -> list[str]:
    """Returns the rules that refuse a request for a model whose queue is full."""
    held = held_variable(backend)
    return refuse(
        promises.is_over(_is_for(name)),
        FULL.format(f"model {name!r}", f"%[var({held})]", RETRY),
        key_of(backend),
        held,
        headers=(("x-request-id", "%[var(txn.id)]"),),
        note=promises.promise(RETRY_VARIABLE),
    )


def _learn_places(backend: str) -> list[str]:
    """Returns the rules that note how fast places come, all replicas together."""
    place = place_variable(key_of(backend))
    told = "if { var(txn.place) -m int gt 0 } { var(txn.replicas) -m int gt 0 }"
    return [
        f"http-response set-var(txn.place) res.hdr({PLACE_HEADER}),add(0)",
        f"http-response set-var(txn.replicas) nbsrv({up_section(backend)})",
        f"http-response set-var({place}) var(txn.place),div(txn.replicas) {told}",
        f"http-response set-var({place_variable(ANY)}) var({place}) {told}",
        *(
            rule
            for queue in (key_of(backend), ANY)
            for rule in (
                f"http-response set-var({told_variable(queue)}) date(0,us) {told}",
                f"http-response set-var({quiet_variable(queue)}) date(0,us)",
                f"http-request set-var({quiet_variable(queue)}) date(0,us) "
                f"if {{ be_conn({backend}) le 1 }}",
            )
        ),
    ]
