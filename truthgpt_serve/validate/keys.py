"""Whether a Serve file says who may use the service, and says it the same in every application."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from truthgpt_serve.access.key_file import read_keys
from truthgpt_serve.access.settings import KEYS_VARIABLE, Auth, check_listening, find_auth
from truthgpt_serve.config import Source
from truthgpt_serve.config.auth import AuthSection
from truthgpt_serve.errors import ConfigError, Fault


class Asked(NamedTuple):
    """What one application says.

    Attributes:
        name: The application.
        place: Where its `args` stand.
        auth: What it says, by the environment where it says nothing itself.
    """

    name: str
    place: Source
    auth: Auth | None


class KeysCheck:
    """Collects what the applications of a Serve file say about keys, and their faults."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._asked: list[Asked] = []
        self._read: set[str] = set()

    def add(self, name: str, section: AuthSection | None, place: Source) -> None:
        """Takes note of one application.

        Args:
            name: The application.
            section: Its `auth`.
            place: Where its `args` stand.
        """
        try:
            auth = find_auth(section, place.at("auth", "keys_file"))
            if auth is not None and auth.keys_file is not None and auth.keys_file not in self._read:
                self._read.add(auth.keys_file)
                read_keys(Path(auth.keys_file))
        except ConfigError as error:
            self.faults += [fault for fault in error.faults if fault not in self.faults]
            return
        self._asked.append(Asked(name, place, auth))

    def finish(self, host: object, source: Source) -> list[Fault]:
        """Returns all faults.

        Args:
            host: `http_options.host`.
            source: The Serve file.
        """
        return [*self.faults, *self._differences(), *self._open_doors(host, source)]

    def _differences(self) -> list[Fault]:
        if not self._asked:
            return []
        first = next((one for one in self._asked if one.auth is not None), self._asked[0])
        shown = first.place.at("auth")
        return [
            Fault(
                one.place.at("auth"),
                f"is not the same as {shown} of the application {first.name!r}: a model's own "
                "address checks keys for itself",
                f"write the same `auth` into every application's `args`, or set {KEYS_VARIABLE}",
            )
            for one in self._asked
            if one.auth != first.auth
        ]

    def _open_doors(self, host: object, source: Source) -> list[Fault]:
        if not self._asked or not isinstance(host, str):
            return []
        if any(one.auth is not None for one in self._asked):
            return []  # if only some say so, that is the fault
        return check_listening(None, host, source.at("http_options", "host"))
