"""What the user has set for pip, as options of uv. Needs nothing but Python.

uv reads none of pip's settings, and a package index that somebody chose must be the one asked.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

OPTIONS = {
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}
"""These take several values, separated by blanks or lines."""
FLAGS = {"no-index": "--no-index", "pre": "--prerelease=allow"}
VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "extra-index-url": "UV_INDEX",
    "index-url": "UV_DEFAULT_INDEX",
    "proxy": "ALL_PROXY",
}
"""An address of these may hold a password, which all users of the machine see in a command."""
WITHOUT_EFFECT = {
    "break-system-packages", "cache-dir", "config-file", "default-timeout",
    "disable-pip-version-check", "log",
    "no-cache-dir", "no-color", "no-input", "no-python-version-warning", "no-warn-script-location",
    "prefer-binary", "progress-bar", "quiet", "require-virtualenv", "resume-retries", "retries",
    "root-user-action", "timeout", "verbose",
}  # fmt: skip
"""Settings that say nothing of what is installed and from where."""
SECTIONS = ("global", "install", ":env:")
"""Of pip's settings for `pip install`; a later one counts more."""


def read_settings(lines: Iterable[str]) -> dict[str, str]:
    """Returns the settings for `pip install` among the lines of `pip config list`."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in lines:
        name, _, value = line.strip().partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = str(ast.literal_eval(value))
    return {key: value for section in SECTIONS for key, value in found[section].items()}


def translate(settings: dict[str, str]) -> tuple[list[str], dict[str, str]] | None:
    """Returns uv's options and variables for these settings, or None where one has no counterpart.

    pip takes the best version of all indexes, and so does uv then; by itself it takes the first
    index that has a package.
    """
    options = ["--index-strategy", "unsafe-best-match"]
    variables: dict[str, str] = {}
    for key, value in settings.items():
        if key in OPTIONS:
            if "@" in value:  # maybe with a password
                return None
            options += [word for one in value.split() for word in (OPTIONS[key], one)]
        elif key in FLAGS:
            if value.lower() in ("1", "true", "yes", "on"):
                options.append(FLAGS[key])
        elif key in VARIABLES:
            variables[VARIABLES[key]] = " ".join(value.split())
        elif key not in WITHOUT_EFFECT:
            return None
    return options, variables
