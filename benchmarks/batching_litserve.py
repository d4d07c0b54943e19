"""Serves one of the benchmark's classes by LitServe with its own batching.

Runs in an environment that has litserve and not this product.
Command: `python batching_litserve.py NAME PORT MAX_BATCH_SIZE BATCH_TIMEOUT_S FAST_QUEUE`.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np
from batching_classes import CLASSES


class BatchedAPI(litserve.LitAPI):
    """LitServe's hooks around a class: the same bodies in and out as the product's."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self._name = name

    def setup(self, device: str) -> None:
        """Loads the model in the worker process."""
        self._model = CLASSES[self._name]()
        self._model.load({})

    # LitServe hands annotations on to FastAPI, which would check the body by them.
    def decode_request(self, request):  # type: ignore[no-untyped-def]  # hence none
        """Returns the inputs, the array decoded."""
        return {key: _decode(value) for key, value in request["inputs"].items()}

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leaves the list as it is: the class makes the arrays."""
        return inputs

    def predict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Runs the model on a batch."""
        outputs: list[dict[str, Any]] = self._model.infer_batch(batch)
        return outputs

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leaves the answers as they are: one for each request."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """Returns the body of the answer."""
        return {"model": self._name, "outputs": output}


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    data = base64.b64decode(value["b64"])
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def main(name: str, port: str, max_batch_size: str, batch_timeout_s: str, fast_queue: str) -> None:
    """Serves until the process is ended."""
    api = BatchedAPI(name, max_batch_size=int(max_batch_size), batch_timeout=float(batch_timeout_s))
    server = litserve.LitServer(
        api, accelerator="cpu", timeout=60, fast_queue=fast_queue == "1", workers_per_device=1
    )
    server.run(
        host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning",
        num_api_servers=1, access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
