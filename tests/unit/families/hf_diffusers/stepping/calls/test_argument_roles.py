from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from deployments.hf_diffusers.stepping.calls.argument_roles import (
    Entries,
    Exactly,
    Items,
    Row,
    RowList,
    RowListEqual,
    Shared,
    Timestep,
    UnbatchableError,
    Value,
    freeze,
)
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests


def test_digests_are_computed_once_for_an_unchanged_tensor() -> None:
    digests = Digests()
    ids = torch.arange(12).reshape(2, 6)
    first = digests.of(ids)
    assert digests.of(ids) is first  # the same object: not hashed again
    assert digests.of(ids.clone()) == first
    assert digests.of(ids, first_row=True) == digests.of(ids[0].clone()) != first
    ids[1, 1] += 1
    assert digests.of(ids) != first


def test_digests_of_every_dtype_and_shape() -> None:
    digests = Digests()
    for dtype in (torch.bfloat16, torch.float16, torch.int64, torch.bool):
        values = torch.tensor([[0, 1], [1, 0]]).to(dtype)
        assert digests.of(values) == digests.of(values.t().contiguous().t())
        assert digests.of(values) != digests.of(values[0].clone())
    assert digests.of(torch.tensor(1.0)) != digests.of(torch.tensor(2.0))


def test_digests_hold_no_tensor_and_stay_bounded() -> None:
    digests = Digests(max_entries=3)
    kept = [torch.tensor([float(number)]) for number in range(9)]
    values = [digests.of(tensor) for tensor in kept]
    assert len(set(values)) == 9
    assert len(digests) == 3
    assert [digests.of(tensor) for tensor in kept] == values
    kept.clear()
    gc.collect()
    assert len(digests) == 0
    with pytest.raises(ValueError, match="max_entries"):
        Digests(max_entries=0)


def test_digests_of_inference_tensors_are_not_kept() -> None:
    digests = Digests()
    with torch.inference_mode():
        values = torch.zeros(3)
        before = digests.of(values)
        values += 1
        assert digests.of(values) != before
    assert len(digests) == 0


@pytest.mark.parametrize(
    ("role", "value"),
    [
        (Row(), 1.0),
        (Row(), torch.tensor(1.0)),
        (Timestep(), 5),
        (Timestep(dtype=torch.float32), True),
        (Timestep(), torch.zeros(2, 2)),
        (Shared(), [1]),
        (Shared(), torch.zeros(0)),
        (RowList(), torch.zeros(2, 3)),
        (RowList(), [torch.zeros(3)]),
        (RowList(), [torch.zeros(3), torch.zeros(4)]),
        (RowList(ragged=True), [torch.zeros(3, 1), torch.zeros(3, 2)]),
        (RowList(), [torch.zeros(3), 1]),
        (RowListEqual(), [1, 2]),
        (RowListEqual(), [torch.zeros(1)] * 2),
        (Items(Row()), [torch.zeros(2), torch.zeros(3)]),
        (Items(Row()), torch.zeros(2)),
        (Entries((("a", Row()),)), [1]),
        (Entries((("a", Row()),)), {"b": 1}),
        (Exactly(False), None),
        (Value(), object()),
        (Value(), [{"a": torch.zeros(1)}]),
    ],
)
def test_roles_refuse_what_they_do_not_know(role: Any, value: Any) -> None:
    with pytest.raises(UnbatchableError, match="'it"):
        role.key("it", value, 2, Digests())


def test_plain_values_are_equal_only_with_their_types() -> None:
    values = [0, 0.0, False, None, "0", (0,), [0], {"0": 0}, {0: 0}, torch.float32, b"0"]
    assert len({freeze("it", value) for value in values}) == len(values)
    assert freeze("it", {"a": 1, "b": [2]}) == freeze("it", {"b": [2], "a": 1})
