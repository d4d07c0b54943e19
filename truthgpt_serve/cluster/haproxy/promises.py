"""HAProxy's rules that let a client in which was refused and comes again as it was told.

They are for requests past the routers, which know their own clients (`router/waiting/claims.py`). A
client is a connection, or an address where it comes by a new one. While some are to come, a model's
last places are kept for them: those who were not told anything find the model full a little
earlier. What an address was told counts for each of its connections, as many times as it was told
so, up to `MAX_PROMISES`.
"""

from __future__ import annotations

from truthgpt_serve.cluster.haproxy.places import NOW_TICK, TICK, TICKS_A_S, last_is_due

TABLE = "promises"
KEPT_SHARE = 8
"""One of so many places that a model holds is kept."""
LATE_S = 10
"""So long after it was due, a promise is kept."""
MAX_PROMISES = 8
"""Of one address: one that asks all the time does not take the places that are kept for others."""
MAX_CLIENTS = 100_000
MAX_WAIT_S = 120
"""How long a promise is remembered at all."""
_DUE_MARGIN_S = 1
"""How long after the last place that was promised somebody may still come for it."""
_NUMBER, _THEN = 0, 1
"""What is stored of a client: how many promises it has, and the tick at which the first is due."""

_LATE_TICKS = LATE_S * TICKS_A_S

REST = "txn.rest"
"""How many places the model of a request has left for it."""
_WHO, _KEPT, _LATE, _DUE = "txn.who", "txn.kept", "txn.late", "txn.due"
_TOLD_BY, _TOLD, _SEEN = "sess.told_by", "sess.told_tick", "sess.seen"
"""Of a connection: the model that refused it last, the tick at which it may come again, and whether
it has had a request for a model without many places: such a client comes again by its own."""
_KNOWN = f"{{ var({_WHO}) -m found }}"
_IS_DUE = f"{{ var({_DUE}) -m bool }}"
_IS_FULL = f"{{ var({REST}) -m int le 0 }}"
_IS_CROWDED = f"{{ var({_KEPT}) -m found }} {{ var({REST}),sub({_KEPT}) le 0 }}"


def promises_table() -> list[str]:
    """Returns the section that remembers whom places were promised."""
    return [
        f"backend {TABLE}",
        f"    stick-table type string len 128 size {MAX_CLIENTS} expire {MAX_WAIT_S}s store gpt(2)",
    ]


def count_places(condition: str, count: str, held: str) -> list[str]:
    """Returns the rules that note how many places a model has left, and are kept.

    Args:
        condition: When a request is counted; HAProxy's conditions, without `if`.
        count: What says how many requests HAProxy has at its model.
        held: The variable that says how many that holds.
    """
    to_come = last_is_due(_DUE_MARGIN_S)
    return [
        f"http-request set-var({NOW_TICK}) {TICK} if {condition}",
        f"http-request set-var({REST}) {count},sub({held}),neg if {condition}",
        f"http-request set-var({_KEPT}) var({held}),div({KEPT_SHARE}) if {condition} {to_come}",
    ]


def recognize(model: str) -> list[str]:
    """Returns the rules that find who comes as it was told, behind those of `count_places`.

    Args:
        model: The variable with the model's name.
    """
    known, number = f"src,concat(' ',{model})", f"sc_get_gpt({_NUMBER},1)"
    is_told = f"{_KNOWN} {_is_told_by(model)}"
    return [
        f"http-request set-var({_WHO}) {known} if {_IS_FULL}",
        f"http-request set-var({_WHO}) {known} if {_IS_CROWDED}",
        f"http-request track-sc1 var({_WHO}) table {TABLE} if {_KNOWN}",
        f"http-request set-var(txn.then) sc_get_gpt({_THEN},1) if {_KNOWN} {{ {number} gt 0 }}",
        f"http-request set-var({_LATE}) var({NOW_TICK}),sub(txn.then) "
        "if { var(txn.then) -m found }",
        f"http-request set-var({_DUE}) bool(true) if {{ var({_LATE}) -m int 0:{_LATE_TICKS} }} "
        f"!{{ var({_SEEN}) -m found }}",
        f"http-request set-var(txn.since) var({NOW_TICK}),sub({_TOLD}) if {is_told}",
        f"http-request set-var({_DUE}) bool(true) if {{ var(txn.since) -m int 0:{_LATE_TICKS} }}",
        f"http-request sc-set-gpt({_NUMBER},1) {number},sub(1) if {_IS_DUE} !{_IS_FULL} "
        f"{{ {number} gt 0 }}",
        f"http-request set-var({_SEEN}) bool(true) if {_KNOWN}",
    ]


def _is_told_by(model: str) -> str:
    return f"{{ var({_TOLD_BY}),strcmp({model}) eq 0 }}"


def forget(model: str, condition: str) -> list[str]:
    """Returns the rule by which a connection that a model lets in was told nothing by it.

    Args:
        model: The variable with its name.
        condition: When it is let in; HAProxy's conditions, without `if`.
    """
    return [f"http-request unset-var({_TOLD_BY}) if {_is_told_by(model)} {condition}"]


def is_over() -> list[str]:
    """Returns when a request that was counted is too much; any one of these conditions."""
    return [_IS_FULL, f"{_IS_CROWDED} !{_IS_DUE}"]


def promise(retry: str, model: str) -> list[tuple[str, str]]:
    """Returns the actions that note a promise, each with its condition.

    Args:
        retry: The variable with the seconds that the client was told.
        model: The variable with the model's name.
    """
    number = f"sc-set-gpt({_NUMBER},1)"
    then = f"sc-set-gpt({_THEN},1) var({retry}),mul({TICKS_A_S}),add({NOW_TICK})"
    is_lost = f"{{ var({_LATE}) -m int gt {_LATE_TICKS} }}"
    has_none = (f"!{{ var({_LATE}) -m found }}", is_lost)
    return [
        (f"set-var({_TOLD}) var({retry}),mul({TICKS_A_S}),add({NOW_TICK})", ""),
        (f"set-var({_TOLD_BY}) var({model})", ""),
        *((then, f"{_KNOWN} {none}") for none in has_none),
        *((f"{number} int(1)", f"{_KNOWN} {none}") for none in has_none),
        (then, _IS_DUE),
        (
            f"{number} sc_get_gpt({_NUMBER},1),add(1)",
            f"{{ var({_LATE}) -m int lt 0 }} {{ sc_get_gpt({_NUMBER},1) lt {MAX_PROMISES} }}",
        ),
    ]
