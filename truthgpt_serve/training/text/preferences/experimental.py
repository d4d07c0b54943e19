"""The trainers of trl that it may move in any release; the others import from `trl` itself.

A class that is not where it was fails here, with the releases that have it.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import version
from typing import Any

from truthgpt_serve.training.errors import TrainingError

ORPO_MODULE = "trl.experimental.orpo"


def load_orpo() -> tuple[Any, Any]:
    """Returns trl's `ORPOConfig` and `ORPOTrainer`.

    Raises:
        TrainingError: This release of trl does not have them there.
    """
    return _load(ORPO_MODULE, "ORPOConfig", "ORPOTrainer")


def _load(module: str, *names: str) -> tuple[Any, ...]:
    with warnings.catch_warnings():
        # It warns that what is imported here may change: this file is the one place for it.
        warnings.filterwarnings("ignore", message="You are importing from 'trl.experimental'")
        try:
            found = importlib.import_module(module)
            return tuple(getattr(found, name) for name in names)
        except (ImportError, AttributeError) as error:
            fix = "pip install 'trl==1.16.0', or choose another training.method"
            raise TrainingError(
                f"trl {version('trl')} has no {' and '.join(names)} in {module} ({fix})"
            ) from error
