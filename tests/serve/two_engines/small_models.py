"""Models without weights beside the engines: echoes, and classes of users' own, good and bad."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import model_application

SERVE = Path(__file__).parents[1]
MAX_BODY = 150_000
"""The largest body that a model takes, in bytes, where a test sends a larger one."""
BRIEF_S = 3.0
"""How long a request may take where a test lets one take longer."""


def small_models(modules: Path) -> list[dict[str, Any]]:
    """Returns their entries in the Serve file.

    Args:
        modules: Where replicas import from; gets the classes.
    """
    for module in ("user_models", "user_asgi_models"):
        shutil.copy(SERVE / f"{module}.py", modules / f"same_{module}.py")
    small = {"hardware": {"cpus": 0.1, "gpus": 0}}
    bounds, brief = {"max_body_bytes": MAX_BODY}, {"max_request_s": BRIEF_S}
    echo = {"model": {"family": "echo"}, **small}
    application = {"model": {"family": "own-application", "import": "same_user_asgi_models"}}
    shouting = {"model": {"family": "shouting", "import": "same_user_models"}, **small}
    four = {"max_ongoing_requests": 4}  # one for each way, and one that has been answered
    one = {"max_ongoing_requests": 1, "max_queued_requests": 1}
    models: dict[str, dict[str, Any]] = {
        "echo": {**echo, "serving": bounds},
        "breaking": {**echo, "serving": {"engine": {"fail_after": 3}}},
        "hasty": {**echo, "serving": {**brief, "engine": {"token_interval_s": 0.1}}},
        "shouting": {**shouting, "serving": {**bounds, **four}},
        "narrow": {**shouting, "serving": one},
        "own": {**application, **small, "serving": {**bounds, **brief, **four}},
        "slow-own": {**application, **small, "serving": four},
    }
    return [model_application(name, model) for name, model in models.items()]
