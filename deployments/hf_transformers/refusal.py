"""The error for a setting that turns out wrong while the model loads; knows no setting."""

from __future__ import annotations

from truthgpt_serve.errors import ConfigError, Fault


def bad_setting(path: str, message: str, fix: str = "") -> ConfigError:
    """Returns the error that names a setting by its dotted path, what is wrong, and what to do."""
    return ConfigError([Fault(path, message, fix)])
