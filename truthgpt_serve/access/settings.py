"""What an application is told of keys: from its `args` or the environment to the gate before it."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgpt_serve.access.counting.redis_commands import is_address
from truthgpt_serve.access.gate import OPEN_AT_MODEL, OPEN_AT_SERVICE, Gate
from truthgpt_serve.access.key_metrics import KeyMetrics, State, keys_state, usage_state
from truthgpt_serve.access.key_ring import KeyRing
from truthgpt_serve.access.meter import Ended, Meter
from truthgpt_serve.access.quota import Quota
from truthgpt_serve.access.token_quota import TokenQuota
from truthgpt_serve.config.auth import MEMORY, NONE, AuthSection
from truthgpt_serve.config.paths import expand, find_config
from truthgpt_serve.config.variables import expand as expand_variables
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.usage.batch import KEEP_DAYS
from truthgpt_serve.usage.recorder import UsageRecorder

KEYS_VARIABLE = "TRUTHGPT_KEYS_FILE"
USAGE_VARIABLE = "TRUTHGPT_USAGE_FILE"
STORE_VARIABLE = "TRUTHGPT_QUOTA_STORE"
FIX = "write `auth: {keys_file: keys.yaml}` or `auth: none` into the `args` of every application"
_ADDRESS_FIX = (
    "write redis://:PASSWORD@HOST:PORT/NUMBER, with / ? # @ % in it as %2F %3F %23 %40 %25"
)
_SERVICE_ONLY = frozenset(("/docs", "/openapi.json"))


@dataclass(frozen=True, slots=True)
class Auth:
    """What a Serve file says about keys.

    Attributes:
        keys_file: Path of the file, absolute; None for `auth: none`.
        public_routes: Routes that need no key.
        usage_file: Where what the keys use is kept, absolute; None for a place by `keys_file`.
        keep_days: Days after which that is dropped.
        quota_store: Redis' address, which may hold a password; None counts in memory.
    """

    keys_file: str | None
    public_routes: tuple[str, ...] = ()
    usage_file: str | None = None
    keep_days: int = KEEP_DAYS
    quota_store: str | None = field(default=None, repr=False)


def find_auth(
    section: AuthSection | None, place: str, environ: Mapping[str, str] = os.environ
) -> Auth | None:
    """Returns what an application is told: by its section, else by the environment, else nothing.

    Args:
        section: The section of its `args`.
        place: Where that stands, for faults.
        environ: The environment.

    Raises:
        ConfigError: There is no such file, or Redis' client is not installed.
    """
    if section is None:
        given = environ.get(KEYS_VARIABLE, "").strip()
        if not given:
            return None
        place = KEYS_VARIABLE
        section = AuthSection(keys_file=given) if given != NONE else None
    if section is None or section.keys_file is None:
        return Auth(None)
    try:
        path = find_config(section.keys_file, place)
    except ConfigError as error:
        fix = f"make it: truthgpt keys add NAME --file {section.keys_file}"
        faults = [Fault(fault.place, fault.message, fix) for fault in error.faults]
        raise ConfigError(faults) from None
    keys, usage = path.absolute(), section.usage
    named = usage.file or environ.get(USAGE_VARIABLE, "").strip()
    file = str(keys.parent / expand(named)) if named else None
    store = _find_store(section, place.removesuffix(".keys_file"), environ)
    return Auth(str(keys), tuple(sorted(section.public_routes)), file, usage.keep_days, store)


def _find_store(section: AuthSection, place: str, environ: Mapping[str, str]) -> str | None:
    """Returns the address of what counts for all machines; None counts in memory."""
    place = f"{place}.quota_store"
    store, given = section.quota_store, environ.get(STORE_VARIABLE, "").strip()
    if given and "quota_store" not in section.model_fields_set:
        try:
            value = expand_variables(f"${{{STORE_VARIABLE}}}", {STORE_VARIABLE: given})
            store = AuthSection(keys_file=section.keys_file, quota_store=value).quota_store
        except ValueError:
            message = "is neither memory nor an address of Redis"
            raise ConfigError([Fault(STORE_VARIABLE, message, "write redis://HOST:PORT")]) from None
        place = STORE_VARIABLE
    if store == MEMORY:
        return None
    if importlib.util.find_spec("redis") is None:
        fix = "pip install 'truthgpt-serve[redis]'"
        raise ConfigError([Fault(place, "needs the package redis", fix)])
    if store is not None and not is_address(store):  # it is not shown: it may hold a password
        raise ConfigError([Fault(place, "is no address that Redis' client takes", _ADDRESS_FIX)])
    return store


def is_loopback(host: str | None) -> bool:
    """Returns whether a server that listens on this host is reached from its machine alone."""
    if host is None or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listening(auth: Auth | None, host: str | None, place: str) -> list[Fault]:
    """Returns the fault of a service that lets everybody in and does not say that it shall.

    Args:
        auth: What an application is told of keys.
        host: `http_options.host`; None for Ray Serve's default, this machine.
        place: Where that stands.
    """
    if auth is not None or is_loopback(host):
        return []
    message = f"{host!r} opens the service to others, and nothing says who may use it"
    return [Fault(place, message, FIX)]


def check_same(
    auth: Auth | None, applications: Iterable[Mapping[str, Any]], place: str
) -> list[Fault]:
    """Returns the fault of an application that asks for no keys where another one does.

    Args:
        auth: What this application is told of keys.
        applications: The Serve file's entries, as they run.
        place: Where this one's `auth` stands.
    """
    if auth is not None and auth.keys_file is not None:
        return []
    for other in applications:
        given = (other.get("args") or {}).get("auth")
        if isinstance(given, Mapping) and given.get("keys_file"):
            message = f"asks for no keys, and the application {other.get('name')!r} does"
            return [Fault(place, message, "write the same `auth` into every application's `args`")]
    return []


class Access:
    """The gates of one application; without keys there are none.

    Args:
        auth: What it is told of keys.
        allow_origins: Origins whose pages may read a refusal.
        names: The model's own name, aliases and adapters; empty for the router.
        open_recorder: Opens what keeps the usage of keys: takes their file, the usage's, and for
            how many days. None keeps none.

    Raises:
        ConfigError: The file with the keys cannot be used.
    """

    def __init__(
        self,
        auth: Auth | None,
        allow_origins: Sequence[str],
        names: Sequence[str] = (),
        open_recorder: Callable[[str, str | None, int], UsageRecorder] | None = None,
    ) -> None:
        keys_file = None if auth is None else auth.keys_file
        self._keys = None if keys_file is None else KeyRing(Path(keys_file))
        self._quota = self._metrics = self._meter = self._recorder = None
        if auth is not None and keys_file is not None and names:
            # At the models alone: each request comes to one.
            self._quota = Quota(Path(keys_file), names[0], store=auth.quota_store)
            self._meter = Meter(self._quota, self._report)
            if open_recorder is not None:
                self._recorder = open_recorder(keys_file, auth.usage_file, auth.keep_days)
            limits = dict if self._keys is None else self._keys.limits
            self._metrics = KeyMetrics(self._quota.shared, limits, [*self._states()])
        self._names = names
        self._allow_origins = allow_origins
        public = frozenset(() if auth is None else auth.public_routes)
        self._open: Collection[str] = (
            OPEN_AT_MODEL | (public - _SERVICE_ONLY) if names else OPEN_AT_SERVICE | public
        )

    def _states(self) -> Iterator[State]:
        if self._keys is not None:
            keys = self._keys
            yield keys_state(lambda: keys.is_current)
        if self._recorder is not None:
            recorder = self._recorder
            yield usage_state(lambda: recorder.is_kept)

    def counting(self, app: Any) -> Any:
        """Returns the application behind the limits of what its requests use.

        Args:
            app: The application, around which something bounds bodies and answers errors.
        """
        return app if self._quota is None else TokenQuota(app, self._quota)

    def metrics_page(self) -> str:
        """Returns what the requests of each key did, in Prometheus' text format."""
        return "" if self._metrics is None else self._metrics.page()

    def guard(self, app: Any, mount: str | None = None, *, hides_key: bool = False) -> Any:
        """Returns the application behind a gate.

        Args:
            app: The application.
            mount: Where it is mounted, if the gate stands in front of Ray's server.
            hides_key: Whether the application does not see the key.
        """
        if self._keys is None:
            return app
        return Gate(
            app,
            self._keys,
            self._open,
            mount=mount,
            names=self._names,
            allow_origins=self._allow_origins,
            hides_key=hides_key,
            meter=self._meter,
        )

    def _report(self, ended: Ended) -> None:
        if self._metrics is not None:
            self._metrics.report(ended)
        if self._recorder is not None:
            is_error = ended.outcome in ("error", "refused")
            self._recorder.add(ended.key, self._names[0], ended.usage, is_error)

    def internal_headers(self) -> list[tuple[bytes, bytes]]:
        """Returns the headers with which this process asks another one of the service."""
        return [] if self._keys is None else self._keys.internal_headers()

    def close(self) -> None:
        """Ends what follows the file."""
        if self._keys is not None:
            self._keys.close()
        if self._quota is not None:
            self._quota.close()
        if self._recorder is not None:
            self._recorder.close()
