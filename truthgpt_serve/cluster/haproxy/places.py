"""What HAProxy remembers of a queue's places: how fast they come, and when the last one is due.

A model's are in a table, where HAProxy finds them as fast among many models as among few; those of
all models together are in variables of the process. The rules that refuse see no difference: they
work on variables of the request, which are loaded before and saved behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_MODELS = 4096
NAME_BYTES = 160
"""Of the longest name of a model, and more than it has."""
PLACE_AGE_S = 600
"""After which what a replica has told of its places says nothing any more."""
TICKS_A_S = 10
"""How finely times are stored that need not be exact."""
_EPOCH_S = 1_760_000_000
"""When ticks began, in seconds since 1970: what a table stores has 32 bits."""
TICK = f"date(0,ms),sub({_EPOCH_S * 1000}),div({1000 // TICKS_A_S})"

NOW_TICK = "txn.tick"
NOW, PLACE, LAST, QUIET = "txn.now", "txn.place", "txn.last", "txn.quiet"
"""In us: now; between two places; when the last place comes that was promised; when an answer came
last, or a request where none was at work. What is not known is not set."""
_TABLE, _COUNTER = "places", 0
_PLACE, _TOLD, _QUIET, _LAST, _LAST_US = range(5)
"""What is stored of a model: `PLACE`, the tick at which it was told, the ms of `QUIET` as far as
they fit, the tick of `LAST`, and the us from there to `LAST`. What was never stored is 0."""
_MS_MASK = 2**31 - 1
"""24 days; what nobody asks for is forgotten after an hour."""
_TICK_US = 1_000_000 // TICKS_A_S
_EPOCH_US = _EPOCH_S * 1_000_000


@dataclass(frozen=True, slots=True)
class Places:
    """HAProxy's actions for the places of one queue.

    Attributes:
        load: Set `PLACE`, `LAST` and `QUIET`, behind one that sets `NOW`; each with its condition.
        save: Store `LAST`.
        learn: Store `PLACE`, which a replica has just told.
        end_quiet: Store now as `QUIET`.
    """

    load: tuple[tuple[str, str], ...]
    save: tuple[str, ...]
    learn: tuple[str, ...]
    end_quiet: str


def places_table() -> list[str]:
    """Returns the section with the table."""
    return [
        f"backend {_TABLE}",
        f"    stick-table type string len {NAME_BYTES} size {MAX_MODELS} expire 1h store gpt(5)",
    ]


def look_up(name: str) -> str:
    """Returns the action behind which `MODEL` is about the model of a variable."""
    return f"track-sc{_COUNTER} var({name}) table {_TABLE}"


def last_is_due(margin_s: int) -> str:
    """Returns the condition that the last place of `MODEL` came no longer ago, or will come.

    `NOW_TICK` is set: a variable with `TICK`.
    """
    most = margin_s * TICKS_A_S + 1  # less would be sooner: ticks are rounded down
    return f"{{ sc_get_gpt({_LAST},{_COUNTER}),sub({NOW_TICK}),neg lt {most} }}"


def _get(what: int) -> str:
    return f"sc_get_gpt({what},{_COUNTER})"


def _set(what: int, value: str) -> str:
    return f"sc-set-gpt({what},{_COUNTER}) {value}"


_MAX_AGE_TICKS = PLACE_AGE_S * TICKS_A_S
MODEL = Places(
    load=(
        (f"set-var(txn.told) {_get(_TOLD)}", ""),
        (
            f"set-var({PLACE}) {_get(_PLACE)}",
            f"{{ {_get(_PLACE)} gt 0 }} {{ {TICK},sub(txn.told) le {_MAX_AGE_TICKS} }}",
        ),
        (f"set-var(txn.last_us) {_get(_LAST_US)},add({_EPOCH_US})", ""),
        (f"set-var({LAST}) {_get(_LAST)},mul({_TICK_US}),add(txn.last_us)", ""),
        (f"set-var(txn.quiet_ms) {_get(_QUIET)}", f"{{ {_get(_QUIET)} gt 0 }}"),
        (f"set-var(txn.quiet_us) date(0,ms),sub(txn.quiet_ms),and({_MS_MASK}),mul(1000)", ""),
        # A thread's clock, or one that was set back, may be behind what was stored.
        ("set-var(txn.quiet_us) int(0)", f"{{ var(txn.quiet_us),sub({_MS_MASK * 500}) gt 0 }}"),
        (f"set-var({QUIET}) var({NOW}),sub(txn.quiet_us)", ""),
    ),
    save=(
        f"set-var(txn.last_us) var({LAST}),sub({_EPOCH_US})",
        _set(_LAST, f"var(txn.last_us),div({_TICK_US})"),
        _set(_LAST_US, f"var(txn.last_us),mod({_TICK_US})"),
    ),
    learn=(_set(_PLACE, f"var({PLACE})"), _set(_TOLD, TICK)),
    end_quiet=_set(_QUIET, f"date(0,ms),and({_MS_MASK})"),
)
"""Of the model that was looked up."""
ALL = Places(
    load=(
        (
            f"set-var({PLACE}) var(proc.place)",
            f"{{ var({NOW}),sub(proc.told) le {PLACE_AGE_S * 1_000_000} }}",
        ),
        (f"set-var({LAST}) var(proc.last)", ""),
        (f"set-var({QUIET}) var(proc.quiet)", ""),
    ),
    save=(f"set-var(proc.last) var({LAST})",),
    learn=(f"set-var(proc.place) var({PLACE})", "set-var(proc.told) date(0,us)"),
    end_quiet="set-var(proc.quiet) date(0,us)",
)
"""Of all models together."""
