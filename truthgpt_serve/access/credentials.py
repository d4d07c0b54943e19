"""The keys themselves: made at random, kept as SHA-256, and read from a request's headers.

Where clients put them: https://platform.openai.com/docs/api-reference/authentication (RFC 6750) and
https://docs.anthropic.com/en/api/overview (`x-api-key`).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from truthgpt_serve.errors import AuthenticationError, ConfigError, Fault
from truthgpt_serve.wording import KEY_PREFIX, hide_keys

NUM_RANDOM_BYTES = 32
MAX_BYTES = 256
"""The longest key that is looked at."""
HEADERS = frozenset((b"authorization", b"x-api-key"))
_SCHEME = b"bearer"
_FORM = "send `Authorization: Bearer KEY`, or `x-api-key: KEY`"


def create_key() -> str:
    """Returns a new key of 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(NUM_RANDOM_BYTES)


def digest(key: bytes) -> bytes:
    """Returns what is kept of a key."""
    return hashlib.sha256(key).digest()


@contextmanager
def hide_keys_of_faults() -> Iterator[None]:
    """Hides the keys that faults of a configuration show: a key may stand there by mistake.

    Raises:
        ConfigError: As the block does.
    """
    try:
        yield
    except ConfigError as error:
        texts = [(fault.place, fault.message, fault.fix) for fault in error.faults]
        faults = [Fault(*map(hide_keys, text)) for text in texts]
        raise ConfigError(faults) from None


def read_credential(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns the key that a request carries. A header without a value counts as absent.

    Args:
        headers: Names in lower case.

    Raises:
        AuthenticationError: There is none, or several, or in another form.
    """
    bearer = key = None
    for name, value in headers:
        if name not in HEADERS:
            continue
        value = value.strip()
        if not value or value.lower() == _SCHEME:  # as clients send whose key is not set
            continue
        if name == b"x-api-key":
            if key is not None:
                raise AuthenticationError("the request has several headers `x-api-key`")
            key = value
        else:
            if bearer is not None:
                raise AuthenticationError("the request has several headers `Authorization`")
            bearer = value
    own = key if bearer is None else _read_bearer(bearer)
    if own is None:
        raise AuthenticationError(f"an API key is missing: {_FORM}")
    if key is not None and key != own:
        raise AuthenticationError("`Authorization` and `x-api-key` carry two different keys")
    return own


def _read_bearer(value: bytes) -> bytes:
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != _SCHEME:
        raise AuthenticationError(f"`Authorization` does not carry a Bearer key: {_FORM}")
    return key.strip()
