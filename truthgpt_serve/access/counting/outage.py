"""Says why the server of the counts is away, and when it is back."""

from __future__ import annotations

import logging
import re

logger = logging.getLogger(__name__)

MAX_CAUSES = 4
"""Lines of one outage, as the words of a cause may differ each time."""
_OF_PIPELINE = "caused error: "
"""What redis-py puts before the server's words, after the command with its place."""
_OF_SCRIPT = " script: "
"""What the server puts before the script and its line."""
_NUMBERS = re.compile(r"\d+")


class Outage:
    """One outage after the other; each cause is said once in each.

    A server that goes away for one cause may stay away for another, which then has to be mended:
    it closes its connections, and asks for another password since.
    """

    def __init__(self) -> None:
        self._causes: set[str] = set()

    def note(self, error: Exception) -> None:
        """Logs why the server is away, unless this cause was said since it was up."""
        kind, text = type(error).__name__, str(error)
        words = text.rpartition(_OF_PIPELINE)[2].partition(_OF_SCRIPT)[0]
        cause = kind + _NUMBERS.sub("", words)
        if cause not in self._causes and len(self._causes) < MAX_CAUSES:
            self._causes.add(cause)
            reason = f"{kind}: {text}".rstrip(": ")
            logger.error(
                "quota_store does not answer, so each machine counts for itself: %s", reason
            )

    def end(self) -> None:
        """Logs that the server counts again, if it was away."""
        if self._causes:
            self._causes.clear()
            logger.warning("the limits of keys are counted in quota_store again")
