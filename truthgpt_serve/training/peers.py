"""Ends a worker whose peer has failed: it may be waiting for that peer, and for ever."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truthgpt_serve.training.events import FAILED, EventReader

POLL_S = 0.5
GRACE_S = 5.0
"""What a worker is given to end by itself: of the same fault, or because a connection is gone."""
EXIT_PEER_FAILED = 3


@contextmanager
def ending_with_peers(folder: Path) -> Iterator[None]:
    """Ends this process in the block some seconds after a worker of the run has failed.

    Workers meet in collective operations, which wait for all of them, on a GPU without a limit that
    anybody waits for. A failure is seen in the run's log, where each worker writes its own.
    """
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(EventReader(folder), left), daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def _watch(events: EventReader, left: threading.Event) -> None:
    while not left.wait(POLL_S):
        if any(event["event"] == FAILED for event in events.read()) and not left.wait(GRACE_S):
            print("another worker has failed", file=sys.stderr, flush=True)
            os._exit(EXIT_PEER_FAILED)
