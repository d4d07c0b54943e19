"""Asks a ring of keys whose key one is."""

from __future__ import annotations

from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.errors import AuthenticationError


def name_of(ring: KeyRing, key: str | bytes) -> str | None:
    """Returns the name of a key, None for one that does not count."""
    key = key.encode() if isinstance(key, str) else key
    try:
        return ring.identify([(b"authorization", b"Bearer " + key)]).name
    except AuthenticationError:
        return None
