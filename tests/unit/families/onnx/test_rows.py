"""Requests that the family `onnxruntime` joins along the first axis, and those that it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy
import pytest
from onnx import TensorProto, helper

from deployments.onnx.config import FAMILY
from deployments.onnx.deployment import OnnxModel
from deployments.onnx.rows import groups
from tests.support.onnx_models import (
    Arrays,
    assert_same,
    configure,
    images,
    load,
    make_node_graph,
    reference,
    save,
    tensor,
)
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError, RequestError
from truthgpt_serve.server.instance import ModelInstance


def test_requests_of_mixed_sizes_get_their_own_results(vision: Path) -> None:
    model = load(vision)
    requests = [
        images(rows, height, 6, seed)
        for seed, (rows, height) in enumerate([(1, 5), (3, 5), (1, 8), (2, 8), (1, 5), (4, 7)])
    ]
    for found, inputs in zip(model.infer_batch(requests), requests, strict=True):
        assert_same(found, reference(vision, inputs))
    keys = [model.batch_key(inputs) for inputs in requests]
    assert keys[0] == keys[1] == keys[4]
    assert len(set(keys)) == 3


def test_runs_are_joined_up_to_the_limit_of_rows(vision: Path) -> None:
    requests = [images(rows, 4, 4) for rows in (2, 2, 3, 9, 1, 1)]
    assert list(groups(requests, 4)) == [[0, 1], [2], [3], [4, 5]]
    model = load(vision, engine={"max_batch_rows": 4})
    sizes = count_runs(model)
    model.infer_batch(requests)
    assert sizes == [4, 3, 9, 2]


def count_runs(model: OnnxModel) -> list[int]:
    """Returns a list to which each run of the session adds its rows."""
    session, sizes = model._loaded, []
    run = session.run

    def counted(arrays: Arrays) -> Arrays:
        sizes.append(len(next(iter(arrays.values()))))
        return run(arrays)

    session.run = counted  # type: ignore[method-assign]  # counts what the real one runs
    return sizes


ALONE: dict[str, tuple[str, list[Any], list[Any] | None, Arrays | None]] = {
    "fixed first axis": ("Relu", [1, 4], None, {}),
    "another first axis comes out": ("Transpose", ["batch", "n"], ["n", "batch"], {}),
    "no first axis comes out": ("ReduceMean", ["batch", 4], [], {"keepdims": 0}),
    "rows know of each other": ("Softmax", ["batch", 4], None, {"axis": 0}),
    "rows change their places": ("CumSum", ["batch", 4], None, None),
}


@pytest.mark.parametrize("case", ALONE)
def test_what_cannot_be_joined_runs_alone(tmp_path: Path, case: str) -> None:
    operator, shape, out, attributes = ALONE[case]
    path = tmp_path / "m.onnx"
    if attributes is None:
        node = helper.make_node(operator, ["x", "axis"], ["y"])
        value = tensor("x", TensorProto.FLOAT, shape)
        result = tensor("y", TensorProto.FLOAT, shape)
        save(path, [node], [value], [result], axis=numpy.array(0))
    else:
        make_node_graph(path, operator, shape, out=out, **attributes)
    model = load(path)
    rows = shape[0] if isinstance(shape[0], int) else 3
    random = numpy.random.default_rng(5)
    requests = [{"x": random.standard_normal((rows, 4)).astype("f4")} for _ in range(4)]
    assert len({model.batch_key(inputs) for inputs in requests}) == 4
    for found, inputs in zip(model.infer_batch(requests), requests, strict=True):
        assert_same(found, reference(path, inputs))


def test_joining_can_be_asked_for_and_switched_off(vision: Path, tmp_path: Path) -> None:
    inputs = images(1, 4, 4)
    off = load(vision, engine={"batch_requests": False})
    assert off.batch_key(inputs) != off.batch_key(inputs)
    coupled = make_node_graph(tmp_path / "m.onnx", "Softmax", ["batch", 4], axis=0)
    asked = load(coupled, engine={"batch_requests": True})
    row = {"x": numpy.ones((1, 4), numpy.float32)}
    assert asked.infer_batch([row, row])[0]["y"].tolist() == [[0.5] * 4]
    fixed = make_node_graph(tmp_path / "fixed.onnx", "Relu", [1, 4])
    with pytest.raises(ConfigError) as caught:
        load(fixed, engine={"batch_requests": True})
    assert str(caught.value) == (
        "serving.engine.batch_requests: true needs one free first axis that all tensors share, "
        "found x: float32 [1, 4], y: float32 [1, 4] "
        "(export the model with a dynamic batch axis, or write false)"
    )


async def test_concurrent_requests_share_runs_and_bad_ones_fail_alone(encoder: Path) -> None:
    cfg = configure(encoder, serving={"batching": {"max_batch_size": 16}})
    instance = ModelInstance(FAMILY, load_model_config(cfg), name="encoder")
    await instance.start()
    try:
        sizes = count_runs(instance.model)
        random = numpy.random.default_rng(11)

        async def ask(number: int) -> int:
            length = (3, 5, 8)[number % 3]
            ids = random.integers(0, 10, (1 + number % 2, length))
            mask = random.integers(0, 2, ids.shape).astype(numpy.float32)
            inputs = {"ids": ids, "mask": mask}
            if number % 10 == 4:
                inputs["ids"] = ids + 10  # found by the graph
            if number % 10 == 7:
                inputs["mask"] = mask[:, 1:]  # found before
            try:
                outputs = await instance.infer(inputs)
            except RequestError:
                assert number % 10 in (4, 7)
                return 1
            assert number % 10 not in (4, 7)
            assert_same(outputs, await asyncio.to_thread(reference, encoder, inputs))
            return 0

        failed = await asyncio.gather(*(ask(number) for number in range(60)))
        assert sum(failed) == 12
        assert max(sizes) > 3, "requests were joined"
    finally:
        await instance.close()
