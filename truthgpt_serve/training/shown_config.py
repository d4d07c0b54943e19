"""A configuration as files and pages may show it: variables by name, secrets not at all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.config.source import KeyPath, dotted

HIDDEN = "(hidden)"
"""Stands for a text whose key says that it may be a secret."""
_PARTS = ("secret", "password", "passwd", "credential", "apikey", "authorization", "passphrase")
_WORDS = frozenset(
    ("auth", "bearer", "cookie", "dsn", "key", "keys", "pass", "pwd", "token", "tokens")
)
_NAMES_OF_OTHERS = ("_env", "_file", "_path", "_field")
"""Ends of keys that say where something is, not what."""
_REFERENCE = re.compile(r"(?<!\$)\$\{\w")
_USER = re.compile(r"(?<=://)[^/@\s]+@")


def is_secret_name(name: str) -> bool:
    """Returns whether the text at a key of this name may be a secret."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if spaced.endswith(_NAMES_OF_OTHERS):
        return False
    words = set(re.split(r"[^a-z]+", spaced))
    return any(part in spaced for part in _PARTS) or bool(words & _WORDS)


def show_config(cfg: Mapping[str, Any], hidden: HiddenValues) -> dict[str, Any]:
    """Returns a configuration as a YAML file would write it, with variables and without secrets.

    Args:
        cfg: The configuration, with the values of its variables.
        hidden: These values, by their places.
    """
    shown: dict[str, Any] = hide_secrets(_write(cfg, hidden, ()))
    return shown


def hide_secrets(config: Any, *, is_secret: bool = False) -> Any:
    """Returns a nested value without the texts below keys that may be secrets.

    Args:
        config: As `show_config` returns it: variables stay.
        is_secret: Whether it stands below such a key itself.
    """
    if isinstance(config, Mapping):
        return {
            name: hide_secrets(item, is_secret=is_secret or is_secret_name(str(name)))
            for name, item in config.items()
        }
    if isinstance(config, list):
        return [hide_secrets(item, is_secret=is_secret) for item in config]
    if not isinstance(config, str) or not config:
        return config
    is_shown = not is_secret or _REFERENCE.search(config)
    return _USER.sub(f"{HIDDEN}@", config) if is_shown else HIDDEN


def _write(value: Any, hidden: HiddenValues, path: KeyPath) -> Any:
    """Returns a nested value as a file has it: a variable by its name, `${` as `$${`."""
    if isinstance(value, Mapping):
        return {name: _write(item, hidden, (*path, name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_write(item, hidden, (*path, at)) for at, item in enumerate(value)]
    written = _written(value, hidden, path)
    if written is None and isinstance(value, str):
        return value.replace("${", "$${")
    return value if written is None else written


def _written(value: Any, hidden: HiddenValues, path: KeyPath) -> str | None:
    """Returns how a value was written; a text may have become a list of one."""
    if value is None:
        return None
    places = [dotted(path)]
    if path and path[-1] == 0:
        places.append(dotted(path[:-1]))
    found = (hidden.written_at(place, value) for place in places)
    return next((written for written in found if written is not None), None)


def variable_digests(leaves: Iterator[tuple[str, Any]], hidden: HiddenValues) -> dict[str, str]:
    """Returns a digest of each value that a variable gave, by its dotted key.

    Another value can be noticed by it, but the value not be read: it is slow to guess.
    """
    places = [place.partition("[")[0] for place, values in hidden.at.items() if values]
    return {key: _digest(key, value) for key, value in leaves if key in places}


def _digest(key: str, value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.scrypt(text, salt=key.encode(), n=2**13, r=8, p=1, dklen=16).hex()
