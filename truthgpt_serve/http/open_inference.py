"""What router and models share of the Open Inference Protocol: paths, errors, the server's card.

The protocol, version 2, and its binary tensor extension:
https://github.com/kserve/open-inference-protocol and
https://github.com/triton-inference-server/server/tree/main/docs/protocol.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

PREFIX = "/v2"
MODELS_PREFIX = f"{PREFIX}/models/"
_REST = re.compile(r"(/versions/[^/]*)?(/ready|/infer)?$")
MODEL_VERSION = "1"
"""An application serves one version of a model: a new one replaces it."""
EXTENSIONS = ("binary_tensor_data", "parameters")


def is_open_inference(path: str) -> bool:
    """Returns whether a path, relative to the application, belongs to the protocol."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def split_model_path(path: str) -> tuple[str, str]:
    """Splits a path below `MODELS_PREFIX` behind the model's name, which may have slashes."""
    rest = path.removeprefix(MODELS_PREFIX)
    found = _REST.search(rest)
    return (rest[: found.start()], found[0]) if found else (rest, "")


def model_of_path(path: str) -> str:
    """Returns the model name of a path below `MODELS_PREFIX`."""
    return split_model_path(path)[0]


def error_body(message: str) -> dict[str, Any]:
    """Returns an error as the protocol shapes it."""
    return {"error": message}


def server_metadata() -> dict[str, Any]:
    """Returns the answer to `GET /v2`."""
    return {
        "name": "truthgpt-serve",
        "version": version("truthgpt-serve"),
        "extensions": list(EXTENSIONS),
    }
