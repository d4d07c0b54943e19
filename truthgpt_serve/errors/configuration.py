"""Errors of what a user wrote: configurations and families."""

from __future__ import annotations

from dataclasses import dataclass

from truthgpt_serve.errors.base import TruthGPTError


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake in a configuration.

    Attributes:
        place: File and dotted path, such as `models/x.yaml: serving.autoscaling.min_replicas`.
        message: What is wrong, with the value that was found.
        fix: What to write instead, or an empty string.
    """

    place: str
    message: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return f"{text} ({self.fix})" if self.fix else text


class ConfigError(TruthGPTError):
    """A configuration that cannot be used; `faults` holds every mistake that was found."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def bad_setting(path: str, message: str, fix: str = "") -> ConfigError:
    """Returns the error for one setting, found wrong while a model loads: its dotted path first."""
    return ConfigError([Fault(path, message, fix)])


class RegistryError(TruthGPTError):
    """A family name that is unknown, or that two classes claim."""

    status = 400
    type = "invalid_request_error"
