"""`serving.batching` against `max_ongoing_requests`: a batch must be able to fill."""

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
