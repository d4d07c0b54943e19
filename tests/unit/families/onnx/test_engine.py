"""Providers and loading."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from deployments.onnx.config import OnnxSettings
from deployments.onnx.engine import choose_provider, probe_provider
from tests.support.onnx_models import (
    assert_same,
    configure,
    images,
    load,
    make_node_graph,
    reference,
    save,
    tensor,
)
from truthgpt_serve.errors import ConfigError


@pytest.mark.parametrize("level", ["none", "basic", "extended", "layout", "all"])
def test_every_level_of_optimization_gives_the_same(vision: Path, level: str) -> None:
    inputs = images(1, 6, 6)
    engine = {"graph_optimization": level, "parallel_branches": True, "spinning": True}
    assert_same(load(vision, engine=engine).infer(inputs), reference(vision, inputs))


def test_threads_follow_the_cores(vision: Path) -> None:
    for cpus, threads in ((0.5, 1), (1, 1), (3, 3)):
        model = load(vision, hardware={"cpus": cpus})
        options = model._loaded._session.get_session_options()
        assert options.intra_op_num_threads == threads
        assert options.inter_op_num_threads == 1


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ConfigError) as caught:
        load(broken)
    assert str(caught.value) == (
        f"{broken}: ONNX Runtime cannot load it: Load model from {broken} failed:"
        "Protobuf parsing failed."
    )
    path = make_node_graph(tmp_path / "bf16.onnx", "Identity", ["n"], kind=TensorProto.BFLOAT16)
    with pytest.raises(ConfigError, match=r"'x' is tensor\(bfloat16\), which cannot travel"):
        load(path)
    split = helper.make_node("SplitToSequence", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = save(tmp_path / "s.onnx", [split], [tensor("x", TensorProto.FLOAT, ["n"])], [sequence])
    with pytest.raises(ConfigError, match=r"'y' is seq\(tensor\(float\)\), which cannot travel"):
        load(path)


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_named_provider_works_or_is_an_error(vision: Path, name: str) -> None:
    engine = {"execution_provider": name}
    problem = probe_provider(name, OnnxSettings())
    if problem is None:  # on a machine that has it
        assert load(vision, engine=engine).metadata()["platform"] == f"onnxruntime_onnx_{name}"
        return
    with pytest.raises(ConfigError) as caught:
        load(vision, engine=engine)
    assert str(caught.value).startswith(
        f"serving.engine.execution_provider: {name}: {problem} (install onnxruntime-gpu instead"
    )


def test_only_auto_does_without_the_gpu(vision: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert choose_provider(configure(vision, hardware={"gpus": 0})) == "cpu"
    problem = probe_provider("cuda", OnnxSettings())
    if problem is None:  # on a machine that has it
        assert choose_provider(configure(vision, hardware={"gpus": 1})) == "cuda"
        return
    with pytest.raises(ConfigError, match=r"hardware\.device: cuda: "):
        load(vision, hardware={"device": "cuda"})
    assert "the GPU is not used" not in caplog.text
    assert choose_provider(configure(vision, hardware={"gpus": 1})) == "cpu"
    assert f"the GPU is not used: {problem}; install onnxruntime-gpu" in caplog.text
