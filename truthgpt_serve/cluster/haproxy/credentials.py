"""Leaves places of a model to other API keys, however many requests one key sends.

Works on the lines of the configuration that Ray Serve writes. HAProxy counts the requests of each
credential at each model, and at the routers; a credential may have as many there as places are
left. That is a dynamic threshold (A. K. Choudhury and E. L. Hahne, "Dynamic Queue Length Thresholds
for Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998): one alone has
half of the places, n have 1/(n+1) each, and as many are left for whoever comes. Models with keys
are let have twice what they hold (`router/room.py`), so that half is all that they hold.

- Only where the routers say that models ask for keys: else clients send any credential.
- Which keys are good is not known here. What has no credential counts as one, and so does what has
  several headers of a name, the last of which is empty.
- The table has digests, as the admin socket shows it.
"""

from __future__ import annotations

from collections.abc import Iterable

from truthgpt_serve.cluster.haproxy.places import NAME_BYTES

KEYED_KEY = "keyed."
"""In the query of the routers' request, before the name of a model that asks for keys."""
KEYED_MAP_NAME = "keyed.map"
TABLE, _LEAVING = "credentials", "credentials_leaving"
"""The tables that count requests, and those of them whose answers are whole."""
MAX_PAIRS = 100_000
"""Of a credential and a model, with requests at work."""
_AT_WORK, _DONE = 4, 5
NUM_COUNTERS = 6
"""Of HAProxy's stick counters, all those that one request is in."""
_OWN, _GONE, _SEEN, _CREDENTIAL = "txn.own", "txn.gone", "txn.pair", "txn.credential"
"""How many requests of its credential are at a request's model; how many of those are whole; the
key of the tables, and the credential itself, until its digest is in that."""
_IS_COUNTED = f"{{ var({_SEEN}) -m found }}"


def keyed_news(names: Iterable[str]) -> dict[str, str]:
    """Returns what a router's query says of models that ask for keys, by name."""
    return {KEYED_KEY + name: "1" for name in names}


def credential_tables() -> list[str]:
    """Returns the sections that count the requests of credentials."""
    store = f"type string len {NAME_BYTES + 40} size {MAX_PAIRS} expire 10s store conn_cur"
    return [
        line
        for name in (TABLE, _LEAVING)
        for line in (f"backend {name}", f"    stick-table {store}")
    ]


def find_credential(condition: str, model: str = "") -> list[str]:
    """Returns the rules that find a request's credential, and how many others of it are at work.

    Args:
        condition: When they are counted; HAProxy's conditions, without `if`.
        model: The variable with the name of the model that they are at; empty for the routers.
    """
    visible = "regsub([^!-~]+,,g)"  # as `access/credentials.py` reads it
    return [
        f"http-request set-var({_CREDENTIAL}) str() if {condition}",
        f"http-request set-var({_CREDENTIAL}) req.fhdr(x-api-key),{visible} if {condition}",
        f"http-request set-var({_CREDENTIAL}) req.fhdr(authorization),{visible},"
        f"regsub(^bearer,,i) if {condition} {{ req.fhdr(authorization),length gt 7 }}",
        f"http-request set-var({_SEEN}) var({_CREDENTIAL}),sha2(256),bytes(0,16),hex"
        f"{f',concat(:,{model})' if model else ''} if {condition}",
        f"http-request unset-var({_CREDENTIAL}) if {condition}",
        f"http-request set-var({_OWN}) var({_SEEN}),table_conn_cur({TABLE}) if {_IS_COUNTED}",
        f"http-request set-var({_GONE}) var({_SEEN}),table_conn_cur({_LEAVING}) if {_IS_COUNTED}",
        f"http-request set-var({_OWN}) var({_OWN}),sub({_GONE}) if {_IS_COUNTED}",
    ]


def take_share(rest: str) -> list[str]:
    """Returns the rule by which the places that are left for a request depend on its credential.

    Args:
        rest: The variable with how many places the model has left.
    """
    return [f"http-request set-var({rest}) var({rest}),sub({_OWN}) if {_IS_COUNTED}"]


def say_share(rest: str, held: str) -> list[str]:
    """Returns the rule by which a refusal says how many requests of its key there are.

    Args:
        rest: The variable with how many places were left for the request.
        held: The variable with what the refusal says.
    """
    is_its_own = f"{{ var({rest}) -m int le 0 }} {{ var({rest}),add({_OWN}) gt 0 }}"
    return [f"http-request set-var({held}) var({_OWN}) if {_IS_COUNTED} {is_its_own}"]


def is_greedy(taken: str) -> str:
    """Returns the condition that a request's credential has as many others as places are left.

    Args:
        taken: An expression: how many places there are no more, negative where some are left.
    """
    return f"{_IS_COUNTED} {{ {taken},add({_OWN}) ge 0 }}"


def track_credential(condition: str) -> str:
    """Returns the rule that counts a request of a credential until it ends.

    Args:
        condition: When; HAProxy's conditions, without `if`.
    """
    return (
        f"http-request track-sc{_AT_WORK} var({_SEEN}) table {TABLE} if {_IS_COUNTED} {condition}"
    )


def release_credential(condition: str) -> str:
    """Returns the rule that counts it no more when its answer is whole.

    Args:
        condition: As in `track_credential`, and that its answer is whole.
    """
    return (
        f"http-response track-sc{_DONE} var({_SEEN}) table {_LEAVING} if {_IS_COUNTED} {condition}"
    )
