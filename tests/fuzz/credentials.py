"""Gives requests API keys: good ones, wrong ones, and good ones in places where none belongs."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass

from tests.fuzz.requests import Request


@dataclass(frozen=True)
class Keys:
    """Keys of a service.

    Attributes:
        good: Those that are let in, by name.
        bad: Those that are not: unknown, expired, or changed ones.
    """

    good: dict[str, str]
    bad: dict[str, str]

    def secrets(self) -> dict[str, str]:
        """Returns all of them by name."""
        return {**self.good, **self.bad}


def authorize(rng: random.Random, request: Request, keys: Keys) -> bool:
    """Adds a credential to a request, or none; returns whether it is a good one."""
    chance = rng.random()
    if chance < 0.60:
        lines, good = _good(rng, keys), True
    elif chance < 0.70:
        lines, good = [], False
    elif chance < 0.82:
        lines, good = _bad(rng, keys), False
    elif chance < 0.92:
        lines, good = _ill_formed(rng, keys), False
    else:
        lines, good = _good(rng, keys), True
        _spread(rng, request, keys)
    if request.raw is not None:
        more = b"".join(b"%b: %b\r\n" % line for line in lines)
        request.raw = request.raw.replace(b"\r\n", b"\r\n" + more, 1)
    else:
        request.headers += lines
    return good


_Lines = list[tuple[bytes, bytes]]


def _good(rng: random.Random, keys: Keys) -> _Lines:
    key = rng.choice([*keys.good.values(), keys.good["all"], keys.good["all"]]).encode()
    return [rng.choice([(b"authorization", b"Bearer " + key), (b"x-api-key", key)])]


def _bad(rng: random.Random, keys: Keys) -> _Lines:
    key = rng.choice(list(keys.bad.values())).encode()
    return [rng.choice([(b"Authorization", b"Bearer " + key), (b"x-api-key", key)])]


def _ill_formed(rng: random.Random, keys: Keys) -> _Lines:
    key = keys.good["all"].encode()
    forms: list[_Lines] = [
        [(b"authorization", b"Basic " + base64.b64encode(b"user:" + key))],
        [(b"authorization", key)],
        [(b"authorization", b"Bearer " + key), (b"authorization", b"Bearer other")],
        [(b"authorization", b"Bearer " + key), (b"x-api-key", b"other")],
        [(b"authorization", b"Bearer " + key + b" " + key)],
        [(b"authorization", b'Bearer "' + key + b'"')],
        [(b"authorization", b"Bearer \xff\xfe" + key)],
        [(b"x-api-key", key + b"," + key)],
        [(b"x-api-key", key), (b"x-api-key", key)],
        [(b"proxy-authorization", b"Bearer " + key)],
        [(b"authorization", b"Bearer " + key.upper())],
    ]
    return rng.choice(forms)


def _spread(rng: random.Random, request: Request, keys: Keys) -> None:
    """Puts a key where a careless client puts it: what is logged of that must not show it."""
    key = rng.choice(list(keys.secrets().values()))
    place = rng.randrange(6)
    if place == 0 and request.raw is None:
        request.path += ("&" if "?" in request.path else "?") + f"api_key={key}"
    elif place == 1 and isinstance(request.body, dict):
        request.body["model"] = key
    elif place == 2 and isinstance(request.body, dict):
        request.body.update(prompt=key, user=key, api_key=key)
    elif place == 3 and request.raw is None:
        request.path = f"/v1/models/{key}"
    elif request.raw is None:
        names: list[bytes] = [b"cookie", b"user-agent", b"referer", b"x-forwarded-for", b"origin"]
        names.append(b"x-request-id")
        request.headers.append((rng.choice(names), key.encode()))
