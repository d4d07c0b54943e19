"""The errors of the engine; the caller chooses their HTTP status.

StepEngineError
├── EngineClosedError        the engine was closed, or is closing
├── EngineFailedError        the engine's thread ended by a fault: it serves nothing any more
├── QueueFullError           max_ongoing and max_queued are reached
├── UnknownPipelineError     no pipeline was added under that name
├── UnknownAdapterError      the pipeline has no adapter of that name
├── DoesNotFitError          one request alone does not fit into the device's memory
└── NotFiniteError           the image has NaN or infinite values
BaseException
├── JobCancelled             raised inside a cancelled pipeline; `except Exception` lets it pass
└── NeedsExclusive           raised inside a pipeline that changes a shared module
"""

from __future__ import annotations

import traceback


class StepEngineError(Exception):
    """Base of all errors that the engine itself raises."""


class EngineClosedError(StepEngineError):
    """The engine was closed, or is closing."""


class EngineFailedError(StepEngineError):
    """The engine's thread ended by a fault: make a new engine, in a new process if on a GPU."""


class QueueFullError(StepEngineError):
    """As many requests as `max_ongoing` and `max_queued` allow are there.

    Args:
        num_requests: How many these are.
    """

    def __init__(self, num_requests: int) -> None:
        super().__init__(f"max_ongoing and max_queued allow {num_requests} requests: try later")
        self.num_requests = num_requests


class UnknownPipelineError(StepEngineError):
    """No pipeline was added under that name."""


class UnknownAdapterError(StepEngineError):
    """The pipeline was not added with an adapter of that name."""


class DoesNotFitError(StepEngineError):
    """One request alone does not fit into the device's memory."""


class NotFiniteError(StepEngineError):
    """The image has NaN or infinite values."""


class JobCancelled(BaseException):
    """Unwinds a cancelled pipeline; a BaseException, so that no `except Exception` keeps it."""


class NeedsExclusive(BaseException):
    """Unwinds a pipeline that wants to change a module which other requests use."""


def forget_frames(error: BaseException) -> None:
    """Drops the tracebacks of an error, whose frames keep latents and embeddings alive.

    Their text becomes a note of the error, so that a log still shows it. Clearing the frames would
    not do: a frame keeps its function, and with it what that closes over.
    """
    if error.__traceback__ is not None and isinstance(error, Exception):
        error.add_note("".join(["in the engine:\n", *traceback.format_tb(error.__traceback__)]))
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = None
        pending += [current.__cause__, current.__context__]
