"""The configuration of the family `onnxruntime`: what is refused, and where the file is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.onnx.config import FAMILY, default_ongoing_requests, find_file
from tests.support.onnx_models import configure
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config


def check(path: Path, **sections: Any) -> list[str]:
    model = {"name_or_path": str(path)}
    config = load_model_config({"task": "tensor", "model": model, **sections})
    return [str(fault) for fault in check_model(config, place="m")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.mkdir()
    for name in ("a.onnx", "b.onnx"):
        (path / name).write_bytes(b"x")
    return path


def test_the_task_tensor_takes_this_family(folder: Path) -> None:
    config = load_model_config({"task": "tensor", "model": {"name_or_path": str(folder)}})
    assert config.family == FAMILY.name == "onnxruntime"


def test_the_only_file_or_model_onnx_or_the_named_one_is_taken(folder: Path) -> None:
    assert check(folder / "a.onnx") == []
    assert find_file(configure(folder, engine={"file": "b.onnx"})) == folder / "b.onnx"
    (folder / "model.onnx").write_bytes(b"x")
    assert find_file(configure(folder)) == folder / "model.onnx"
    (folder / "model.onnx").unlink()
    (folder / "b.onnx").unlink()
    assert find_file(configure(folder)) == folder / "a.onnx"


def test_a_file_that_is_not_clear_is_refused(folder: Path, tmp_path: Path) -> None:
    assert check(folder) == [
        f"m: model.name_or_path: {str(folder)!r} has several .onnx files "
        "(write serving.engine.file: one of a.onnx, b.onnx)"
    ]
    assert check(folder, serving={"engine": {"file": "c.onnx"}}) == [
        f"m: serving.engine.file: {str(folder)!r} has no file 'c.onnx' "
        "(write serving.engine.file: one of a.onnx, b.onnx)"
    ]
    assert check(folder / "a.onnx", serving={"engine": {"file": "a.onnx"}}) == [
        f"m: serving.engine.file: 'a.onnx' has no meaning: {str(folder / 'a.onnx')!r} is a file "
        "(leave it out, or name the folder in model.name_or_path)"
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert check(empty) == [
        f"m: model.name_or_path: {str(empty)!r} has no .onnx file "
        "(export the model to ONNX first, with torch.onnx for example)"
    ]
    assert check(Path("org/model")) == [
        "m: model.name_or_path: 'org/model' is no local file or folder "
        "(download the model, and write the path of the .onnx file or of its folder)"
    ]
    assert check(Path("/nosuch/m.onnx")) == [
        "m: model.name_or_path: '/nosuch/m.onnx' does not exist "
        "(correct the path, or make the model)"
    ]
    missing = load_model_config({"task": "tensor"})
    assert [str(fault) for fault in check_model(missing, place="m")] == [
        "m: model.name_or_path: is required by family 'onnxruntime' "
        "(write a hub name or a local folder)"
    ]


PROVIDERS = [
    (
        {"gpus": 0}, "cuda",
        "m: serving.engine.execution_provider: cuda needs a GPU, but hardware gives none "
        "(set hardware.gpus: 1, or execution_provider: cpu)",
    ),
    (
        {"device": "cpu"}, "tensorrt",
        "m: serving.engine.execution_provider: tensorrt needs a GPU, but hardware gives none "
        "(set hardware.gpus: 1, or execution_provider: cpu)",
    ),
    (
        {"device": "cuda"}, "cpu",
        "m: serving.engine.execution_provider: cpu contradicts hardware.device: cuda "
        "(set hardware.device: cpu, or leave execution_provider out)",
    ),
    (
        {"gpus": 2}, "cuda",
        "m: hardware.gpus: a session runs on one GPU, not on 2 "
        "(set hardware.gpus: 1 and raise serving.num_replicas)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("hardware", "provider", "fault"), PROVIDERS)
def test_a_provider_that_contradicts_the_hardware(
    folder: Path, hardware: dict[str, Any], provider: str, fault: str
) -> None:
    serving = {"engine": {"execution_provider": provider}}
    assert check(folder / "a.onnx", hardware=hardware, serving=serving) == [fault]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("dtype", "float16", "'float16' cannot be chosen for an .onnx file (leave it out, and "
         "export the model with this type)"),
        ("quantization", "int8", "'int8' cannot be chosen for an .onnx file (leave it out: a "
         "quantized .onnx file runs as it is)"),
        ("compile", True, "True cannot be chosen for an .onnx file (leave it out: "
         "serving.engine.graph_optimization does this)"),
        ("attention", "sdpa", "'sdpa' cannot be chosen for an .onnx file (leave it out: the graph "
         "in the file says how attention is computed)"),
    ],
)  # fmt: skip
def test_what_the_file_decides_is_no_choice(folder: Path, key: str, value: Any, fault: str) -> None:
    faults = check(folder / "a.onnx", model_optim={key: value})
    assert faults == [f"m: model_optim.{key}: {fault}"]


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        (
            {"providers": ["CPU"]},
            "m: serving.engine.providers: unknown field `providers` of family 'onnxruntime' "
            "(did you mean serving.engine.provider_options?)",
        ),
        (
            {"graph_optimization": "fast"},
            "m: serving.engine.graph_optimization: must be one of none, basic, extended, layout, "
            "all, not 'fast'",
        ),
        ({"max_batch_rows": 0}, "m: serving.engine.max_batch_rows: must be at least 1, not 0"),
    ],
)
def test_engine_arguments_are_checked(folder: Path, engine: Any, fault: str) -> None:
    [found] = check(folder / "a.onnx", serving={"engine": engine})
    assert found.startswith(fault)


def test_a_replica_gets_a_batch_that_runs_and_one_that_gathers(folder: Path) -> None:
    file = folder / "a.onnx"
    assert default_ongoing_requests(configure(file)) == 64
    large = configure(file, serving={"batching": {"max_batch_size": 48}})
    assert default_ongoing_requests(large) == 96
