"""What a user reads when the service does not answer, or refuses: one line, with the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from truthgpt_serve.cli._service.address import URL_VARIABLE, Address
from truthgpt_serve.cluster.defaults import KEY_VARIABLE
from truthgpt_serve.terminal import clean
from truthgpt_serve.wording import all_near

if TYPE_CHECKING:
    import httpx

MAX_MESSAGE = 2000
_NAMES_SHOWN = 20


class ServiceFault(click.ClickException):
    """The service did not answer, or refused; exit code 1.

    Attributes:
        status: Its HTTP status, or None where there was no answer.
        code: The code of OpenAI's envelope, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(one_line(message))
        self.status = status
        self.code = code


def one_line(text: str) -> str:
    """Returns a text in one line, without control characters that a terminal would obey."""
    line = " ".join(clean(" ".join(text.split())).split())
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"


def text_of(value: Any) -> str | None:
    """Returns a text of the service in one line; None for anything else, and for nothing."""
    return one_line(value) or None if isinstance(value, str) else None


def no_answer(address: Address, error: httpx.HTTPError | Exception) -> ServiceFault:
    """Returns the fault for a service that cannot be reached, or that left in the middle."""
    import httpx

    at = address.shown
    elsewhere = f"set {URL_VARIABLE}"
    if isinstance(error, httpx.ConnectTimeout):
        return ServiceFault(f"{at} cannot be reached in time: check the address, or {elsewhere}")
    if isinstance(error, httpx.ConnectError):
        if not address.is_loopback or address.url.startswith("https:"):
            return ServiceFault(f"{at} cannot be reached ({error}): check {URL_VARIABLE}")
        return ServiceFault(
            f"no service runs at {at}: start it with `make serve`, or {elsewhere} to one elsewhere"
        )
    if isinstance(error, httpx.TimeoutException):
        return ServiceFault(f"{at} did not answer in time; `truthgpt models` shows how busy it is")
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return ServiceFault(f"{at} is no address: set {URL_VARIABLE}")
    said = str(error) or type(error).__name__
    return ServiceFault(f"{at} broke the connection off ({said}): ask again")


def describe_refusal(
    address: Address,
    status: int,
    body: bytes,
    has_key: bool,
    model: str | None = None,
    names: Sequence[str] = (),
) -> ServiceFault:
    """Returns the fault for an answer that is an error.

    Args:
        address: Where it came from.
        status: HTTP status.
        body: What it says; OpenAI's envelope, if it is this service's.
        has_key: Whether a key was sent.
        model: The model that was asked for.
        names: Those that exist.
    """
    from truthgpt_serve.http.foreign_errors import decode, find_fields  # only a failure needs it

    fields = find_fields(decode(body)) or {}
    message, code = fields.get("message"), fields.get("code")
    if message is None:
        return ServiceFault(
            f"{address.shown} answered with status {status} and no message; "
            f"is that the address of the service? (from {address.source})",
            status=status,
        )
    if status in (401, 403):
        fix = f"check {KEY_VARIABLE}" if has_key else f"set {KEY_VARIABLE}"
        message = f"{message}: {fix}"
    elif status == 404 and model is not None and model not in names:
        message = unknown_model(model, names)
    elif status == 503 and model is not None:
        message = f"{message}; `truthgpt why {model}` says more"
    return ServiceFault(message, status=status, code=code if isinstance(code, str) else None)


def unknown_model(model: str, names: Sequence[str]) -> str:
    """Returns the message for a model that does not exist, with the nearest names."""
    near = all_near(model, names, 3, cutoff=0.5)
    known = ", ".join(names[:_NAMES_SHOWN]) or "none"
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"there is no model {model!r}: {hint}models: {known}{more}"
