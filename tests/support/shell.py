"""The variables that the tests began with, without those that libraries set once imported.

trl has vLLM log nothing but errors, say; a service that a test starts would be another one then.
"""

from __future__ import annotations

import os

VARIABLES = dict(os.environ)


def forget_what_libraries_set() -> None:
    """Makes the environment what it was, but for pytest's own variables."""
    for name in os.environ.keys() - VARIABLES.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]
    os.environ.update(VARIABLES)
