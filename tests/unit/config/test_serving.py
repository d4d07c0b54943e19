"""`serving`: a batch must be able to fill, and numbers have bounds that Ray Serve can work with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sample_models import Base, spec_of
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.plan import request_limits


class Batches(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs

    def infer_batch(self, batch: list[dict[str, Any]]) -> list[Any]:
        return batch


def serving(**keys: Any) -> dict[str, Any]:
    return {"task": "custom", "model": {"family": "echo"}, "serving": keys}


@pytest.mark.parametrize(("size", "ongoing"), [(8, 64), (64, 64), (256, 256)])
def test_the_default_of_ongoing_requests_grows_with_the_batch(size: int, ongoing: int) -> None:
    config = load_model_config(serving(batching={"max_batch_size": size}))
    assert request_limits(config, spec_of(Batches)) == (ongoing, 2 * ongoing)


def test_a_batch_that_can_never_fill_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config(serving(max_ongoing_requests=16, batching={"max_batch_size": 32}))
    (fault,) = caught.value.faults
    assert fault.place.endswith("serving.batching.max_batch_size")
    assert fault.message == "32 is more than serving.max_ongoing_requests, which is 16"
    assert "raise max_ongoing_requests" in fault.fix


def test_the_default_batch_is_no_fault_of_a_small_replica() -> None:
    config = load_model_config(serving(max_ongoing_requests=1))
    again = load_model_config(config.to_cfg())  # as a replica reads it, every key present
    assert again.serving.batching.max_batch_size is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_replicas": 10**12}, "must be at most 10000, not 1000000000000"),
        ({"max_ongoing_requests": 10**12}, "must be at most 65536"),
        ({"max_queued_requests": 10**12}, "must be at most 65536"),
        ({"batching": {"max_batch_size": 10**12}}, "must be at most 65536"),
        ({"autoscaling": {"max_replicas": 10**12}}, "must be at most 10000"),
        ({"autoscaling": {"target_queue_s": 1e-300}}, "must be at least 0.001, not 1e-300"),
        ({"autoscaling": {"target_ongoing_requests": 1e-300}}, "must be at least 0.001"),
        ({"max_request_s": 1e-9}, "must be at least 0.001, not 1e-09"),
        ({"max_request_s": 1e300}, "must be at most 1000000000"),
        ({"health_check_period_s": 1e300}, "must be at most 1000000000"),
        ({"stream_interval_s": 1e300}, "must be at most 1000000000"),
        ({"limits": {"max_inputs": 10**400}}, "is too large"),
    ],
)
def test_numbers_that_nothing_can_serve_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config(serving(**keys))
    (fault,) = caught.value.faults
    assert fault.message.startswith(message)
