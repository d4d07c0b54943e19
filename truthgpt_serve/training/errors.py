"""The errors of a training run."""

from __future__ import annotations

from truthgpt_serve.errors import TruthGPTError


class TrainingError(TruthGPTError):
    """A run that cannot start or go on; the message says where it stands and what to do."""
