"""A class that makes batches is given what fills them; the rest waits where keys are looked at."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.replica.places import divide_places
from truthgpt_serve.server import ModelInstance


class Single:
    def load(self, cfg: dict[str, Any]) -> None:
        """Has nothing to load."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


class Batches(Single):
    max_batch_size = 4

    def infer_batch(self, batch: list[Any]) -> list[Any]:
        return batch


class Sorts(Batches):
    def batch_key(self, inputs: Any) -> int:
        return len(inputs)


class Streams(Batches):
    def stream(self, inputs: Any) -> Any:
        yield inputs


@pytest.mark.parametrize(
    ("model", "serving", "expected"),
    [
        (Single, {}, (1, 2)),
        (Batches, {}, (12, 180)),  # of 64 and 128
        (Batches, {"batching": {"max_batch_size": 10}}, (30, 162)),
        (Batches, {"max_ongoing_requests": 5, "max_queued_requests": 7}, (5, 7)),
        (Sorts, {}, (64, 128)),
        (Streams, {}, (64, 128)),
    ],
)
async def test_places(
    model: type[Single], serving: dict[str, Any], expected: tuple[int, int]
) -> None:
    spec = FamilySpec(name="places-test", class_path="tests:x", model_class=model)
    instance = ModelInstance(spec, load_model_config({"serving": serving}), name="m")
    await instance.start()
    try:
        assert divide_places(instance, has_keys=True) == expected
        own = request_limits(instance.config, spec)
        assert divide_places(instance, has_keys=False) == own
    finally:
        await instance.close()
