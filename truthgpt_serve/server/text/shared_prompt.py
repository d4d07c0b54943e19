"""What the answers to one prompt share, so that `n` of them cost one rendering and one count."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class SharedPrompt:
    """Computes each thing once, whichever thread asks first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Returns what `compute` returned the first time for this name; its errors are not kept."""
        with self._lock:
            if name not in self._found:
                self._found[name] = compute()
            found: T = self._found[name]
            return found
