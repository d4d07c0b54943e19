"""HAProxy's rules that answer 429, at once or held, with the `Retry-After` of `queue_full`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from truthgpt_serve.cluster.haproxy.apis import PATHS, is_of
from truthgpt_serve.errors import OverloadedError
from truthgpt_serve.http.envelope import error_body
from truthgpt_serve.queue_full import AHEAD_S, MAX_QUEUES, MAX_RETRY_S

MAX_EARLY_S = 2
"""For how long after a refusal a connection that asks again is too early."""
PLACE_AGE_S = 600
"""After which what a replica has told of its places says nothing any more."""
HELD_S = 6
"""For how long the refusal of a client is held that does not wait as it was told."""
TOLERANCE_MS = 100
"""By how much a client's clock and timers may be early."""
OVER = "txn.over"
"""Whether a request is too much."""
_NEXT, _EARLY, _BODY = "sess.next", "txn.early", "txn.refusal"
"""When a connection that was refused may ask again, in ms; of a request, whether that is later, and
the body of its refusal."""
RETRY_VARIABLE = "txn.retry"
RETRY = f"%[var({RETRY_VARIABLE})]"
"""Seconds after which a refused client may ask again, in the text of its answer."""
ANY = "any"
"""Stands for the queues of all models together."""


def place_variable(queue: str) -> str:
    """Returns the variable with the microseconds between two places of a queue."""
    return f"proc.place_{queue}"


def told_variable(queue: str) -> str:
    """Returns the variable with the time at which that was told, in us."""
    return f"proc.told_{queue}"


def quiet_variable(queue: str) -> str:
    """Returns the variable with the time at which an answer came last, in us.

    Or a request where none was at work.
    """
    return f"proc.quiet_{queue}"


def last_variable(queue: str) -> str:
    """Returns the variable with the time of the last place that was promised, in us."""
    return f"proc.last_{queue}"


def refuse(
    conditions: Sequence[str],
    message: str,
    queue: str,
    held: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    at_once: str = "",
    note: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Returns the rules that answer 429: at once, or held for a client that asked too early.

    They stand in the frontend: those that are held would count as requests of the backend.

    Args:
        conditions: When; any one of HAProxy's, without `if`.
        message: What the answer says, with `RETRY` in it.
        queue: Which queue is full, as it stands in names of variables.
        held: The variable that says how many requests the queue holds.
        headers: Further headers of the answer.
        at_once: When no answer is held; one of HAProxy's conditions.
        note: Actions that note what a client was told (`RETRY_VARIABLE`), each with its condition.
    """
    over, early = f"{{ var({OVER}) -m bool }}", f"{{ var({_EARLY}) -m bool }}"
    more = "".join(f" hdr {name} {value}" for name, value in headers)
    page = (
        f"content-type application/json hdr retry-after {RETRY}{more} lf-string '%[var({_BODY})]'"
    )
    always = [f"http-request return status 429 {page} if {over} {at_once}"] if at_once else []
    return [
        *(f"http-request set-var({OVER}) bool(true) if {condition}" for condition in conditions),
        f"http-request set-var({_EARLY}) bool(true) if {over} {{ var({_NEXT}) -m found }} "
        f"{{ date(0,ms),sub({_NEXT}) lt 0 }}",
        *(
            f"http-request {action} if {over} {condition}".rstrip()
            for action, condition in _promise(queue, held).items()
        ),
        *(f"http-request {action} if {over} !{early} {condition}" for action, condition in note),
        *_body(message),
        *always,
        f"http-request set-var(txn.ms) var(txn.now),div(1000),sub({TOLERANCE_MS}) if {over}",
        f"http-request set-var(txn.again) var(txn.retry) if {over}",
        # A connection may be of many clients: one whose queue is long holds up no others.
        f"http-request set-var(txn.again) int({MAX_EARLY_S}) if {over} "
        f"{{ var(txn.again) -m int gt {MAX_EARLY_S} }}",
        f"http-request set-var(txn.again) var(txn.again),mul(1000),add(txn.ms) if {over}",
        f"http-request set-var({_NEXT}) var(txn.again) if {over} !{early}",
        f"http-request set-var({_NEXT}) var(txn.again),add({HELD_S * 1000}) if {over} {early}",
        f"http-request tarpit status 429 {page} if {over} {early}",
        f"http-request return status 429 {page} if {over}",
    ]


def _body(message: str) -> list[str]:
    """Returns the rules that write the body of a refusal as the request's API shapes it."""
    error, over = OverloadedError(message), f"{{ var({OVER}) -m bool }}"
    shapes = {"": error_body(error, "")}
    shapes |= {f" {is_of(api)}": error_body(error, path) for api, path in PATHS.items()}
    return [
        f"http-request set-var-fmt({_BODY}) '{_quoted(json.dumps(shape))}' if {over}{condition}"
        for condition, shape in shapes.items()
    ]


def _quoted(text: str) -> str:
    """Returns a text between single quotes of HAProxy's, which end at the next one."""
    return text.replace("'", "'\\''")


def _promise(queue: str, held: str) -> dict[str, str]:
    """Returns what does as `queue_full.Promises` does, each action with its condition.

    `txn.retry` then has the seconds.

    Args:
        queue: As in `refuse`.
        held: As in `refuse`.
    """
    place, last = place_variable(queue), last_variable(queue)
    least_us, most_us = AHEAD_S * 1_000_000, MAX_RETRY_S * 1_000_000
    is_old = f"{{ var(txn.now),sub({told_variable(queue)}) gt {PLACE_AGE_S * 1_000_000} }}"
    return {
        "set-var(txn.now) date(0,us)": "",
        f"unset-var({place})": is_old,
        f"set-var(txn.most) int({most_us})": "",
        # Where a variable is missing, an action does nothing.
        f"set-var(txn.most) var({place}),mul({held}),mul({MAX_QUEUES})": "",
        f"set-var(txn.most) int({least_us})": f"{{ var(txn.most),sub({least_us}) lt 0 }}",
        f"set-var(txn.most) int({most_us}) ": f"{{ var(txn.most),sub({most_us}) gt 0 }}",
        f"set-var({last}) var(txn.now)": f"!{{ var({last}),sub(txn.now) ge 0 }}",
        # Who asks too early has a promise, and makes no other client's later.
        f"set-var({last}) var({last}),add({place})": f"!{{ var({_EARLY}) -m bool }}",
        f"set-var(txn.wait) var({last}),sub(txn.now)": "",
        # Before that is known, requests are thought to take as long again as they have by now.
        f"set-var(txn.wait) var(txn.now),sub({quiet_variable(queue)})": (
            f"!{{ var({place}) -m found }}"
        ),
        "set-var(txn.wait) var(txn.most)": "{ var(txn.wait),sub(txn.most) gt 0 }",
        f"set-var({last}) var(txn.now),add(txn.wait)": "",
        # The next whole number; 1 of 0.
        "set-var(txn.retry) var(txn.wait),sub(1),div(1000000),add(1)": "",
    }
