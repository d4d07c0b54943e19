"""Puts the cause of a failed start first in Serve's message, and reads it from there.

Ray Serve keeps the traceback of what a replica raised, below its own frames, as the deployment's
message. An exception's cause is printed before it: so the text of a `Cause` comes first.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator

from truthgpt_serve.errors import ServerError, TruthGPTError

logger = logging.getLogger(__name__)

MAX_CAUSE = 500
ENDED = "the model's process ended while it started; the next one says why"
"""The cause of a start whose process left none."""


class Cause(Exception):
    """Why a model did not start, in one line."""


class StartError(ServerError):
    """The model did not start; the cause is printed above this, the traceback is in the log."""


_MARK = f"{Cause.__module__}.{Cause.__qualname__}: "
_SECRETS = re.compile(
    r"\b(hf_|sk-|ghp_|github_pat_|tgpt-|xox[a-z]-|AKIA|glpat-)[\w-]{8,}"
    r"|(?<=://)[^/\s@]+@"
    r"|(?i:(?<=bearer )|(?<=token=)|(?<=password=)|(?<=api_key=))[^\s&'\"]+"
)
_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_LAST_ERROR = re.compile(
    r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE
)
_ACTOR_DIED = ("ActorDiedError", "The actor died", "ActorUnavailableError", "WorkerCrashedError")


@contextlib.contextmanager
def cause_first(name: str, hide: Callable[[str], str] = str) -> Iterator[None]:
    """Has what the block raises begin with its cause.

    Args:
        name: The model.
        hide: Takes out of the cause what must not be shown.

    Raises:
        StartError: In the place of any exception.
    """
    try:
        yield
    except Exception as error:
        logger.exception("model %r does not start", name)
        raise StartError(f"the model {name!r} did not start: see above") from to_cause(error, hide)


def to_cause(error: BaseException, hide: Callable[[str], str] = str) -> Cause:
    """Returns an exception's cause in one line, after `hide` took out what must not be shown."""
    first = error
    # A thread's error is wrapped for the event loop; `SystemExit` would end the process.
    while isinstance(first.__cause__, SystemExit | KeyboardInterrupt):
        first = first.__cause__
    text = first.message if isinstance(first, TruthGPTError) else _describe(first)
    return Cause(_one_line(hide(text)))


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"SystemExit: it called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _one_line(text: str) -> str:
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    line = hide_secrets(line)
    return line if len(line) <= MAX_CAUSE else f"{line[: MAX_CAUSE - 1]}…"


def hide_secrets(text: str) -> str:
    """Returns a text with stars for what looks like a key, a token or a password in it."""
    return _SECRETS.sub("***", text)


def read_cause(message: str) -> str | None:
    """Finds the cause of a failure in Ray Serve's message; None in one that tells of no failure.

    Args:
        message: Of an application or a deployment.
    """
    text = _COLORS.sub("", message)
    _, mark, rest = text.partition(_MARK)
    if mark:
        return _one_line(rest.partition("\n")[0])
    if any(word in text for word in _ACTOR_DIED):
        return ENDED
    if errors := _LAST_ERROR.findall(text):
        return _one_line(errors[-1])
    return _one_line(text) if re.search(r"fail|unhealthy|error", text, re.IGNORECASE) else None
