"""Has HAProxy find a model's backend in a map, however many models there are.

Works on the lines of the configuration that Ray Serve writes. Ray compares a request's path with
the prefixes of all applications, one after the other, three times on each of its two ways through
HAProxy, and asks for each whether the request is a health check.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from truthgpt_serve.cluster.haproxy.configuration import (
    CLIENTS,
    ROUTERS,
    insert,
    section,
    use_first,
)

_RULE = re.compile(r"^\s*(use_backend \S+|http-request set-var-fmt\(\S+\) .*) if is_(\S+)")
_CHECK = re.compile(r"^\s*(acl backend_\S+_server_up |http-request return .* if healthcheck\b)")
_NESTED = re.compile(r"^\s*acl is_\S+ (path(?:_beg)? /models/[^/\s]+/\S+)$")
_SECTION = "health"
UNNOTED = "http-request unset-var(txn.serve_app)"
"""Has a request be of no application in Ray's metrics: what HAProxy answers is not the router's."""
BELOW = "below_model"
"""HAProxy's condition for paths that look like a model's and are another application's."""


def leave_out(lines: list[str], backends: Container[str]) -> None:
    """Takes Ray's rules for the models' paths out of the frontends; `queues` has others.

    What Ray notes of an application for its metrics is noted in the backend instead.

    Args:
        lines: The configuration, which is changed.
        backends: Those of the models.
    """
    notes: dict[str, list[str]] = {}
    for frontend in (ROUTERS, CLIENTS):
        start, end = section(lines, frontend)
        kept, notes = [], {}
        for line in lines[start:end]:
            rule = _RULE.match(line)
            if rule is None or rule[2] not in backends:
                kept.append(line)
            elif not rule[1].startswith("use_backend"):
                notes.setdefault(rule[2], []).append(rule[1])
        lines[start:end] = kept
    for backend, actions in notes.items():
        insert(lines, f"backend {backend}", *actions)


def answer_checks(lines: list[str]) -> None:
    """Moves Ray's answers to health checks, one for each application, to a section of their own."""
    checks: list[str] = []
    for frontend in (ROUTERS, CLIENTS):
        start, end = section(lines, frontend)
        checks = [line for line in lines[start:end] if _CHECK.match(line)]
        lines[start:end] = [line for line in lines[start:end] if not _CHECK.match(line)]
        if checks:
            use_first(lines, frontend, f"use_backend {_SECTION} if healthcheck")
    if checks:
        rules = (line.replace(" if healthcheck ", " if ") for line in checks)
        lines += [
            f"backend {_SECTION}",
            f"    {UNNOTED}",
            *(line.removesuffix(" if healthcheck") for line in rules),
        ]


def acl_below_models(lines: Iterable[str]) -> list[str]:
    """Returns what defines `BELOW`: the paths of applications whose prefix is below a model's."""
    paths = (found[1] for line in lines if (found := _NESTED.match(line)))
    # The first is no model's either: HAProxy takes no condition that nothing defines.
    return [f"acl {BELOW} {path}" for path in dict.fromkeys(("path /models", *paths))]
