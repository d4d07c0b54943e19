"""Keeps a conversation on the replica that has its beginning in its prefix cache.

Works on the lines of the configuration that Ray Serve writes; `affinity.lua`, which HAProxy runs,
chooses the replica.

- A model with several replicas whose routers say so, once a second, has an affinity: `prefix`
  looks for a session's id, a cache key, and the beginning of the conversation, `session` for the
  first two only. A request without any goes to the replica with the fewest connections.
- Each replica has a weight for each key (highest random weight): one that comes or goes takes or
  leaves its own share, and all others stay where they are. One that is busier than the others and
  has had more than its part of the last requests is passed over for the next one, where the
  conversation then stays. No request waits for a place at one replica while another has one.
- What routers said stays when HAProxy is replaced, as it is with each replica that comes or goes:
  until they say it again, requests would go to any replica.
- The servers stay in Ray's own backends, whose connections Ray counts before it stops a replica.
- All ways to a model end in its backend, so one rule there serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, insert
from truthgpt_serve.cluster.haproxy.models import find_backends, key_of, servers
from truthgpt_serve.cluster.haproxy.news import hear

SCRIPT_NAME = "affinity.lua"
AFFINITY_KEY, PLACES_KEY = "affinity.", "places."
"""In the query of the routers' request, before a model's name."""
MODES = ("session", "prefix")
CACHE_KEY_HEADER = "x-truthgpt-cache-key"
"""`prompt_cache_key` of a body that is longer than HAProxy reads, as hexadecimal digits."""
ADAPTER_HEADER = "x-truthgpt-adapter"
"""The adapter that a request is for."""
MAX_CACHE_KEY_BYTES = 256
BURST_MS, SESSION_MS = 50, 200
"""Longest time of processor that the script may take at once, and for one request."""
MEMORY_MIB = 64
BODY_TIMEOUT_S = 1
"""For the body of a router's request, which is at hand."""


@dataclass(frozen=True, slots=True)
class Affinity:
    """The affinity of a model with several replicas.

    Attributes:
        mode: One of `MODES`.
        places: Requests that one replica works on at the same time.
    """

    mode: str
    places: int


def affinity_news(affinities: Mapping[str, Affinity]) -> dict[str, str]:
    """Returns what a router's query says of the affinities of models, by name."""
    return {
        **{AFFINITY_KEY + name: one.mode for name, one in affinities.items()},
        **{PLACES_KEY + name: str(one.places) for name, one in affinities.items()},
    }


def read_script() -> bytes:
    """Returns the text of the script."""
    return files(__package__).joinpath(SCRIPT_NAME).read_bytes()


def affinity_variables(lines: list[str]) -> list[str]:
    """Returns the names of the variables that hold what routers said, of all models here."""
    return [name for backend in _backends(lines).values() for name in _variables(backend)]


def keep_conversations(lines: list[str], folder: Path, known: Mapping[str, str]) -> None:
    """Adds the rules for models that have several replicas.

    Args:
        lines: The configuration, which is changed.
        folder: Where the script is.
        known: The values of variables in the process that is replaced.

    Raises:
        UnknownConfigurationError: The configuration is not what Ray 2.60 writes.
    """
    backends = _backends(lines)
    if not backends:
        return
    insert(
        lines,
        "global",
        f"tune.lua.burst-timeout {BURST_MS}",
        f"tune.lua.session-timeout {SESSION_MS}",
        f"tune.lua.maxmem {MEMORY_MIB}",
        "tune.lua.log.stderr off",
        f"lua-load-per-thread {folder / SCRIPT_NAME}",
    )
    for header in (CACHE_KEY_HEADER, ADAPTER_HEADER):
        insert(lines, CLIENTS, f"http-request del-header {header}")
    for name, backend in backends.items():
        mode, places = _variables(backend)
        insert(lines, "global", *_values(mode, places, known))
        key = f"urlp({AFFINITY_KEY}{name})"
        hear(
            lines,
            f"http-request set-var({mode}) {key}",
            f"http-request unset-var({mode}) if !{{ {key} -m found }}",
            f"http-request set-var({places}) urlp({PLACES_KEY}{name}),add(0)",
        )
        insert(lines, f"backend {backend}", *_rules(backend, mode, places))


def _backends(lines: list[str]) -> dict[str, str]:
    """Returns the backends with several replicas, by the model's name."""
    return {
        name: backend
        for name, backend in find_backends(lines).items()
        if len(servers(lines, backend)) > 1
    }


def _variables(backend: str) -> tuple[str, str]:
    """Returns the variables with a backend's affinity and places: the same in each process."""
    key = key_of(backend)
    return f"proc.affinity_{key}", f"proc.places_{key}"


def _values(mode: str, places: str, known: Mapping[str, str]) -> list[str]:
    """Returns the lines that give two variables the values that they had."""
    if known.get(mode) not in MODES or not known.get(places, "").isdigit():
        return []
    return [f"set-var {mode} str({known[mode]})", f"set-var {places} int({known[places]})"]


def _rules(backend: str, mode: str, places: str) -> list[str]:
    """Returns the rules of one backend.

    Args:
        backend: Its name.
        mode: The variable with its affinity.
        places: The variable with the requests that each of its servers works on.
    """
    return [
        f"http-request wait-for-body time {BODY_TIMEOUT_S}s "
        f"if METH_POST {{ var({mode}) -m found }}",
        *(
            f"http-request lua.affinity {backend} {one} {places} if {{ var({mode}) -m str {one} }}"
            for one in MODES
        ),
        *(f"http-request del-header {name}" for name in (CACHE_KEY_HEADER, ADAPTER_HEADER)),
        "use-server %[var(txn.server)] if { var(txn.server) -m found }",
    ]
