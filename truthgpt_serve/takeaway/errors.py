"""The errors of merging, exporting and serving a result."""

from __future__ import annotations

from truthgpt_serve.errors import TruthGPTError


class TakeawayError(TruthGPTError):
    """A result that cannot be taken away; the message names the place and says what to do."""
