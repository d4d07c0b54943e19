"""What the proxy must know to keep a conversation on one replica of its model.

The proxy reads the beginning of a request itself (`cluster/haproxy/affinity.py`). The router tells
it which models have an affinity, and of a request what stands behind that beginning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from truthgpt_serve.cluster.haproxy.affinity import (
    ADAPTER_HEADER,
    CACHE_KEY_HEADER,
    MAX_CACHE_KEY_BYTES,
    MODES,
    Affinity,
)
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.router.bodies.request_body import RequestBody
from truthgpt_serve.router.model_entry import ModelEntry

_CACHE_KEY = b'"prompt_cache_key"'
_VALUE = re.compile(rb'%b[ \t\r\n]*:[ \t\r\n]*"([^"]{1,%d})' % (_CACHE_KEY, MAX_CACHE_KEY_BYTES))
"""As the proxy finds it: in the text, without parsing."""


def affinity_by_model(entries: Iterable[ModelEntry]) -> dict[str, Affinity]:
    """Returns the affinity of each model with several replicas that has one, by name.

    Args:
        entries: All models, adapters and aliases.
    """
    return {
        entry.name: Affinity(entry.card["affinity"], entry.card["limits"]["max_ongoing_requests"])
        for entry in entries
        if entry.is_model and _has_affinity(entry)
    }


def affinity_headers(entry: ModelEntry, body: RequestBody) -> Headers:
    """Returns headers of a relayed request for the proxy, which takes them away.

    Args:
        entry: The model or adapter.
        body: What was read of the body.
    """
    if not _has_affinity(entry):
        return []
    headers = []
    if entry.parent is not None:
        headers.append((ADAPTER_HEADER.encode(), quote(entry.name, safe="").encode()))
    if body.num_bytes > MAX_BODY_BYTES and any(_CACHE_KEY in piece for piece in body.pieces):
        key = _VALUE.search(b"".join(body.pieces))
        if key is not None:
            headers.append((CACHE_KEY_HEADER.encode(), key[1].hex().encode()))
    return headers


def _has_affinity(entry: ModelEntry) -> bool:
    limits = entry.card.get("limits") or {}
    return (
        entry.num_replicas > 1
        and entry.card.get("affinity") in MODES
        and isinstance(limits.get("max_ongoing_requests"), int)
    )
