"""HAProxy's rules that answer 429, at once or held, with the `Retry-After` of `queue_full`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from truthgpt_serve.cluster.haproxy.apis import PATHS, is_of
from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, use_first
from truthgpt_serve.cluster.haproxy.dispatch import UNNOTED
from truthgpt_serve.cluster.haproxy.places import LAST, NOW, PLACE, QUIET, Places
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.queue_full import AHEAD_S, MAX_QUEUES, MAX_RETRY_S

MAX_EARLY_S = 2
"""For how long after a refusal a connection that asks again is too early."""
HELD_S = 6
"""For how long the refusal of a client is held that does not wait as it was told."""
TOLERANCE_MS = 100
"""By how much a client's clock and timers may be early."""
OVER = "txn.over"
"""The section that refuses a request, where one does."""
IS_OVER = f"{{ var({OVER}) -m found }}"
_NEXT, _EARLY, _BODY = "sess.next", "txn.early", "txn.refusal"
"""When a connection that was refused may ask again, in ms; of a request, whether that is later, and
the body of its refusal."""
RETRY_VARIABLE = "txn.retry"
RETRY = f"%[var({RETRY_VARIABLE})]"
"""Seconds after which a refused client may ask again, in the text of its answer."""


def is_over(section: str, conditions: Iterable[str]) -> list[str]:
    """Returns the rules by which a section of `refuse` refuses a request.

    Args:
        section: Its name.
        conditions: When; any one of HAProxy's, without `if`.
    """
    return [f"http-request set-var({OVER}) str({section}) if {one}" for one in conditions]


def send_refused(lines: list[str]) -> None:
    """Sends clients' requests that are refused to the section that does it, before all others."""
    use_first(lines, CLIENTS, f"use_backend %[var({OVER})] if {IS_OVER}")


def refuse(
    section: str,
    message: str,
    places: Places,
    held: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    at_once: str = "",
    note: Sequence[tuple[str, str]] = (),
    application: str = "",
) -> list[str]:
    """Returns a section that answers 429: at once, or held for a client that asked too early.

    Its rules are many, and only the requests that it refuses meet them.

    Args:
        section: Its name.
        message: What the answer says, with `RETRY` in it.
        places: Those of the queue that is full.
        held: The variable that says how many requests the queue holds.
        headers: Further headers of the answer.
        at_once: When no answer is held; one of HAProxy's conditions.
        note: Actions that note what a client was told (`RETRY_VARIABLE`), each with its condition.
        application: Whose queue it is, for Ray's metrics: a format of HAProxy's.
    """
    early = f"{{ var({_EARLY}) -m bool }}"
    more = "".join(f" hdr {name} {value}" for name, value in headers)
    page = (
        f"content-type application/json hdr retry-after {RETRY}{more} lf-string '%[var({_BODY})]'"
    )
    rules = [
        (f"set-var({_EARLY}) bool(true)", f"{{ date(0,ms),sub({_NEXT}) lt 0 }}"),
        *_promise(places, held),
        *((action, f"!{early} {condition}") for action, condition in note),
        *_body(message),
        *([(f"return status 429 {page}", at_once)] if at_once else []),
        *_note_next(early),
        (f"tarpit status 429 {page}", early),
        (f"return status 429 {page}", ""),
    ]
    return [
        f"backend {section}",
        f"    timeout tarpit {HELD_S}s",
        f"    {UNNOTED}",
        *([f"    http-request set-var-fmt(txn.serve_app) {application}"] if application else []),
        *(
            f"    http-request {action}{f' if {condition}' if condition else ''}"
            for action, condition in rules
        ),
    ]


def _note_next(early: str) -> list[tuple[str, str]]:
    """Returns what notes when the connection may ask again.

    Args:
        early: When its answer is held.
    """
    return [
        (f"set-var(txn.ms) var({NOW}),div(1000),sub({TOLERANCE_MS})", ""),
        ("set-var(txn.again) var(txn.retry)", ""),
        # A connection may be of many clients: one whose queue is long holds up no others.
        (f"set-var(txn.again) int({MAX_EARLY_S})", f"{{ var(txn.again) -m int gt {MAX_EARLY_S} }}"),
        ("set-var(txn.again) var(txn.again),mul(1000),add(txn.ms)", ""),
        (f"set-var({_NEXT}) var(txn.again)", f"!{early}"),
        (f"set-var({_NEXT}) var(txn.again),add({HELD_S * 1000})", early),
    ]


def _body(message: str) -> list[tuple[str, str]]:
    """Returns what writes the body of a refusal as the request's API shapes it."""
    error = OverloadedError(message)
    shapes = {"": error_body(error, "")}
    shapes |= {is_of(api): error_body(error, path) for api, path in PATHS.items()}
    return [
        (f"set-var-fmt({_BODY}) '{_quoted(json.dumps(shape))}'", condition)
        for condition, shape in shapes.items()
    ]


def _quoted(text: str) -> str:
    """Returns a text between single quotes of HAProxy's, which end at the next one."""
    return text.replace("'", "'\\''")


def _promise(places: Places, held: str) -> list[tuple[str, str]]:
    """Returns what does as `queue_full.Promises` does, each action with its condition.

    `txn.retry` then has the seconds.

    Args:
        places: As in `refuse`.
        held: As in `refuse`.
    """
    least_us, most_us = AHEAD_S * 1_000_000, MAX_RETRY_S * 1_000_000
    return [
        (f"set-var({NOW}) date(0,us)", ""),
        *places.load,
        (f"set-var(txn.most) int({most_us})", ""),
        # Where a variable is missing, an action does nothing.
        (f"set-var(txn.most) var({PLACE}),mul({held}),mul({MAX_QUEUES})", ""),
        (f"set-var(txn.most) int({least_us})", f"{{ var(txn.most),sub({least_us}) lt 0 }}"),
        (f"set-var(txn.most) int({most_us})", f"{{ var(txn.most),sub({most_us}) gt 0 }}"),
        (f"set-var({LAST}) var({NOW})", f"!{{ var({LAST}),sub({NOW}) ge 0 }}"),
        # Who asks too early has a promise, and makes no other client's later.
        (f"set-var({LAST}) var({LAST}),add({PLACE})", f"!{{ var({_EARLY}) -m bool }}"),
        (f"set-var(txn.wait) var({LAST}),sub({NOW})", ""),
        # Before that is known, requests are thought to take as long again as they have by now.
        (f"set-var(txn.wait) var({NOW}),sub({QUIET})", f"!{{ var({PLACE}) -m found }}"),
        ("set-var(txn.wait) var(txn.most)", "{ var(txn.wait),sub(txn.most) gt 0 }"),
        (f"set-var({LAST}) var({NOW}),add(txn.wait)", ""),
        # The next whole number; 1 of 0.
        ("set-var(txn.retry) var(txn.wait),sub(1),div(1000000),add(1)", ""),
        *((action, "") for action in places.save),
    ]
