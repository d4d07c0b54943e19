"""Finds the models in the configuration that Ray Serve writes for HAProxy."""

from __future__ import annotations

import hashlib
import json
import re

from truthgpt_serve.cluster.haproxy.configuration import section

_ROUTES = re.compile(r'^\s*http-request return status \d+ .* string "(\{.*\})" if routes$')
_PREFIX = re.compile(r"^\s*acl is_(\S+) path (/models/\S+)$")
_SERVER = re.compile(r"^\s*server (\S+) (\S+) (?!.*\bbackup\b)")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def find_backends(lines: list[str]) -> dict[str, str]:
    """Returns the backend of each model that has a replica and a plain name, by that name."""
    routes = next((found[1] for line in lines if (found := _ROUTES.match(line))), "{}")
    names: dict[str, str] = json.loads(routes.replace('\\"', '"'))
    backends = {}
    for line in lines:
        found = _PREFIX.match(line)
        if found is None or names.get(found[2]) != found[2].removeprefix("/models/"):
            continue
        name = names[found[2]]
        if _NAME.fullmatch(name) and f"backend {found[1]}" in lines and servers(lines, found[1]):
            backends[name] = found[1]
    return backends


def up_section(backend: str) -> str:
    """Returns the section that `track` adds for a backend."""
    return f"up-{backend}"


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
