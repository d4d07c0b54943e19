"""Finds the models in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

from truthgpt_serve.cluster.haproxy.configuration import section

UP = "up-"
"""What the sections begin with that `track` adds."""
_ROUTES = re.compile(r'^\s*http-request return status \d+ .* string "(\{.*\})" if routes$')
_PREFIX = re.compile(r"^\s*acl is_(\S+) path (/models/\S+)$")
_SERVER = re.compile(r"^\s*server (\S+) (\S+) (?!.*\bbackup\b)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def find_backends(lines: list[str]) -> dict[str, str]:
    """Returns the backend of each model that has a replica and a plain name, by that name."""
    names, served = _prefixes(lines), _served(lines)
    backends = {}
    for line in lines:
        found = _PREFIX.match(line)
        if found is None or names.get(found[2]) != found[2].removeprefix("/models/"):
            continue
        name = names[found[2]]
        if _NAME.fullmatch(name) and found[1] in served:
            backends[name] = found[1]
    return backends


def _prefixes(lines: Iterable[str]) -> dict[str, str]:
    """Returns the applications by the paths below which each is."""
    routes = next((found[1] for line in lines if (found := _ROUTES.match(line))), "{}")
    names: dict[str, str] = json.loads(routes.replace('\\"', '"'))
    return names


def _served(lines: Iterable[str]) -> set[str]:
    """Returns the backends that have a server."""
    served, backend = set(), ""
    for line in lines:
        if line[:1] not in ("", " ", "\t"):
            backend = line.removeprefix("backend ")
        elif _SERVER.match(line):
            served.add(backend)
    return served


def up_section(backend: str) -> str:
    """Returns the section that `track` adds for a backend."""
    return f"{UP}{backend}"


def key_of(backend: str) -> str:
    """Returns what stands for a backend in the names of variables: the same in each process."""
    return hashlib.sha256(backend.encode()).hexdigest()[:16]


def servers(lines: list[str], backend: str) -> list[tuple[str, str]]:
    """Returns name and address of a backend's servers, without those that only stand in."""
    start, end = section(lines, f"backend {backend}")
    matches = (_SERVER.match(line) for line in lines[start:end])
    return [(server[1], server[2]) for server in matches if server]


def track(lines: list[str], backend: str) -> None:
    """Adds a section without Ray's fallback, which counts the replicas that are up."""
    tracked = [
        f"    server {name} {address} track {backend}/{name}"
        for name, address in servers(lines, backend)
    ]
    lines += [f"backend {up_section(backend)}", *tracked]
