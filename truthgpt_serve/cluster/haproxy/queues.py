"""Has HAProxy answer 429 where a model is full, for whom no router does.

Works on the lines of the configuration that Ray Serve writes.

- Those are requests that go straight to their model (`direct`), and those for `/models/<name>`.
- A model is full when HAProxy has as many requests at it as the routers say that it holds, once a
  second. What they said stays when HAProxy is replaced.
- Its name is a key of maps and tables, so there is one set of rules for all models.
- Of models with keys each credential has a share of the places (`credentials`).
- A request whose answer has a length counts until the head of that comes: as a rule such an answer
  is whole, and HAProxy has it for as long as its client takes to read it
  (`cluster/unread_answers.py`). Where it is still made the replica refuses what it does not hold.
- Neither counted nor refused is a request that makes no work, as one that only reads, and one whose
  body HAProxy does not have as a whole: it takes its place at a replica when its body is there
  (`server/gathered_bodies.py`). A client with many bodies that take long would else have all others
  refused.
- Clients speak HTTP/1. In HTTP/2 one that opens no window has answers wait in HAProxy, where they
  would count for as long as it likes.
"""

from __future__ import annotations

from pathlib import Path

from truthgpt_serve.cluster.haproxy import promises
from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, ROUTERS, insert, use_first
from truthgpt_serve.cluster.haproxy.credentials import (
    KEYED_MAP_NAME,
    find_credential,
    release_credential,
    say_share,
    take_share,
    track_credential,
)
from truthgpt_serve.cluster.haproxy.dispatch import BELOW, acl_below_models
from truthgpt_serve.cluster.haproxy.models import UP
from truthgpt_serve.cluster.haproxy.places import (
    ALL,
    MAX_MODELS,
    MODEL,
    NAME_BYTES,
    PLACE,
    look_up,
    places_table,
)
from truthgpt_serve.cluster.haproxy.refusals import IS_OVER, RETRY, RETRY_VARIABLE, is_over, refuse
from truthgpt_serve.http.asgi import CANCEL
from truthgpt_serve.http.retriable import READABLE
from truthgpt_serve.queue_full import FULL, PLACE_HEADER

MAP_NAME, HELD_MAP_NAME = "models.map", "held.map"
"""From the models to their backends, and to how many requests they hold, as routers say: HAProxy
changes its own copy of the latter."""
BUFFER_BYTES = 65536
MAX_BODY_BYTES = 49152
"""The longest body that HAProxy reads: the buffer has the request's head too."""
TABLE, _LEAVING, _FULL = "at_work", "leaving", "full"
"""Sections: the tables that count requests, and those of them whose answers are whole; and what
refuses."""
_MODEL, _BACKEND = "txn.name", "txn.backend"
"""Which model a request is for, and where that is."""
_QUEUE, _HELD, _APART = "txn.queue", "txn.held", "txn.apart"
_COUNT, _WHOLE = "txn.count", "txn.whole"
"""The model that may refuse a request, how many requests that holds, and whether a request is
neither counted nor refused; how many others are counted, and how many are no more."""
_HAS_MODEL = f"{{ var({_BACKEND}) -m found }}"
_HAS_QUEUE = f"{{ var({_QUEUE}) -m found }}"
_IS_APART = f"{{ var({_APART}) -m found }}"
_HAS_LENGTH = "{ res.fhdr(content-length) -m found }"
_IS_WHOLE = "{ internal.htx.has_eom }"
_CANCELS = f"METH_POST {{ path_end {CANCEL[1]} }} {{ path_sub {CANCEL[0]} }}"
_NO_WORK = ("METH_GET", "METH_OPTIONS", _CANCELS)
"""What needs no place at a model, as `http.asgi.is_work` says. The first is HEAD, too."""


def watch_queues(lines: list[str], folder: Path, *rules: str) -> None:
    """Adds what counts the requests at each model, refuses, and notes how fast places come.

    Args:
        lines: The configuration, which is changed.
        folder: Where the maps are.
        rules: Those before, which send a request to `/models/<name>`.
    """
    find_model = [*acl_below_models(lines), *_find_model(folder)]
    lines += [
        *_table(TABLE),
        *_table(_LEAVING),
        *places_table(),
        *promises.promises_table(),
        *refuse(
            _FULL,
            FULL.format(f"model '%[var({_QUEUE})]'", f"%[var({_HELD})]", RETRY),
            MODEL,
            _HELD,
            headers=(("x-request-id", "%[var(txn.id)]"),),
            note=promises.promise(RETRY_VARIABLE, _QUEUE),
            application=f"%[var({_QUEUE})]",
        ),
    ]
    insert(
        lines,
        ROUTERS,
        *_set_apart(*_NO_WORK, f"{{ req.body_size gt {MAX_BODY_BYTES} }}"),
        *find_model,
        *_count(),
    )
    insert(
        lines,
        CLIENTS,
        "option disable-h2-upgrade",
        *rules,
        *_set_apart(*_NO_WORK, f"!{_IS_WHOLE}"),
        *find_model,
        *_refuse(folder),
        *_count(),
        f"http-response del-header {PLACE_HEADER}",
        *_readable(),
    )
    for frontend in (CLIENTS, ROUTERS):
        use_first(lines, frontend, f"use_backend %[var({_BACKEND})] if {_HAS_MODEL}")


def _table(name: str) -> list[str]:
    store = f"type string len {NAME_BYTES} size {MAX_MODELS} expire 1h store conn_cur"
    return [f"backend {name}", f"    stick-table {store}"]


def _find_model(folder: Path) -> list[str]:
    """Returns the rules that find out which model a request is for."""
    return [
        f"http-request set-var({_MODEL}) path,field(3,/) if {{ path_beg /models/ }} !{BELOW}",
        f"http-request set-var({_BACKEND}) var({_MODEL}),map_str({folder / MAP_NAME}) "
        f"if {{ var({_MODEL}) -m found }}",
        f"http-request {look_up(_MODEL)} if {_HAS_MODEL}",
        f"http-request set-var({_COUNT}) var({_MODEL}),table_conn_cur({TABLE}) if {_HAS_MODEL}",
        f"http-request set-var({_WHOLE}) var({_MODEL}),table_conn_cur({_LEAVING}) if {_HAS_MODEL}",
        f"http-request set-var({_COUNT}) var({_COUNT}),sub({_WHOLE}) if {_HAS_MODEL}",
        *find_credential(
            f"{_HAS_MODEL} !{_IS_APART} {{ var({_MODEL}),map_str_int({folder / KEYED_MAP_NAME}) "
            "-m found }",
            _MODEL,
        ),
    ]


def _count() -> list[str]:
    """Returns the rules that count a request, and note how fast its model has places."""
    at_work = f"{_HAS_MODEL} !{IS_OVER}"
    counted = f"{at_work} !{_IS_APART}"
    quiet = f"{{ var({_COUNT}) -m int lt 1 }}"
    told = f"if {_HAS_MODEL} {{ var({PLACE}) -m int gt 0 }}"
    replicas = f"str({UP}),concat(,{_BACKEND}),nbsrv"
    return [
        *(f"http-request {one.end_quiet} if {at_work} {quiet}" for one in (MODEL, ALL)),
        f"http-request track-sc2 var({_MODEL}) table {TABLE} if {counted}",
        track_credential(counted),
        release_credential(f"{counted} {_HAS_LENGTH}"),
        *(f"http-response {one.end_quiet} if {_HAS_MODEL}" for one in (MODEL, ALL)),
        f"http-response track-sc3 var({_MODEL}) table {_LEAVING} if {counted} {_HAS_LENGTH}",
        f"http-response set-var({PLACE}) res.hdr({PLACE_HEADER}),add(0) if {_HAS_MODEL}",
        f"http-response set-var(txn.replicas) {replicas} {told}",
        f"http-response unset-var({PLACE}) {told} {{ var(txn.replicas) -m int lt 1 }}",
        f"http-response set-var({PLACE}) var({PLACE}),div(txn.replicas) {told}",
        *(f"http-response {action} {told}" for one in (MODEL, ALL) for action in one.learn),
    ]


def _set_apart(*conditions: str) -> list[str]:
    return [f"http-request set-var({_APART}) bool(true) if {one}" for one in conditions]


def _readable() -> list[str]:
    """Returns the rules by which pages of any origin may read a refusal; see `READABLE`."""
    return [
        f"http-after-response set-header {name} {value} if {_HAS_QUEUE} {IS_OVER} "
        f"{{ var(txn.origin) -m found }}"
        for name, value in READABLE
    ]


def _refuse(folder: Path) -> list[str]:
    """Returns the rules that refuse a request for a model whose queue is full."""
    held = f"var({_MODEL}),map_str_int({folder / HELD_MAP_NAME})"
    return [
        f"http-request set-var({_HELD}) {held} if {_HAS_MODEL} !{_IS_APART}",
        f"http-request set-var({_QUEUE}) var({_MODEL}) if {{ var({_HELD}) -m found }}",
        f"http-request set-header x-request-id %[uuid()] if {_HAS_MODEL} !{_IS_APART} "
        "!{ req.hdr(x-request-id) -m found }",
        f"http-request set-var(txn.id) req.hdr(x-request-id) if {_HAS_QUEUE}",  # a tarpit has none
        f"http-request set-var(txn.origin) req.hdr(origin) if {_HAS_QUEUE}",
        *promises.count_places(_HAS_QUEUE, f"var({_COUNT})", _HELD),
        *take_share(promises.REST),
        *promises.recognize(_QUEUE),
        *is_over(_FULL, promises.is_over()),
        *promises.forget(_QUEUE, f"!{IS_OVER}"),
        *say_share(promises.REST, _HELD),
    ]
