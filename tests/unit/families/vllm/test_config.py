from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from deployments.vllm.config import (
    FAMILY,
    attention_backend,
    check_config,
    default_ongoing_requests,
)
from truthgpt_serve.config import load_model_config


def make_cfg(**changes: Any) -> dict[str, Any]:
    source = {"model": {"name_or_path": "some/model"}, "hardware": {"gpus": 0}, **changes}
    return load_model_config(source).to_cfg()


def test_configuration_imports_no_engine() -> None:
    code = (
        "import sys, deployments.vllm.config;"
        "print([m for m in ('vllm', 'torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("gpus", "engine", "path"),
    [
        (0.4, {"gpu_memory_utilization": 0.9}, "serving.engine.gpu_memory_utilization"),
        (0.4, {"gpu_memory_utilization": 0.39}, "serving.engine.gpu_memory_utilization"),
        (0.4, {"gpu_memory_utilization": 0.38}, None),
        (1, {"gpu_memory_utilization": 0.95}, None),
        (0.01, {}, "hardware.gpus"),
        (2, {"tensor_parallel_size": 4}, "serving.engine.tensor_parallel_size"),
        (0.5, {"tensor_parallel_size": 2}, "serving.engine.tensor_parallel_size"),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, None),
        (4, {"pipeline_parallel_size": 2}, None),
        (3, {"pipeline_parallel_size": 2}, "serving.engine.pipeline_parallel_size"),
        (0, {"tensor_parallel_size": 2}, None),
        (0, {"max_loras": 2}, "serving.engine.max_loras"),
    ],
)
def test_sections_are_checked_together(gpus: Any, engine: dict[str, Any], path: str | None) -> None:
    faults = check_config(make_cfg(hardware={"gpus": gpus}, serving={"engine": engine}))
    assert [fault.place for fault in faults] == ([path] if path else [])


@pytest.mark.parametrize(
    ("optim", "path", "fix"),
    [
        ({"quantization": "fp9"}, "model_optim.quantization", "did you mean 'fp8'?"),
        ({"attention": "xformers"}, "model_optim.attention", "known: "),
        ({"quantization": "fp8", "attention": "flashinfer"}, None, ""),
        ({"attention": "flash_attn"}, None, ""),
    ],
)
def test_names_that_the_engine_must_know(optim: dict[str, Any], path: str | None, fix: str) -> None:
    faults = check_config(make_cfg(model_optim=optim))
    assert [fault.place for fault in faults] == ([path] if path else [])
    assert all(fix in fault.fix for fault in faults)


def test_attention_names() -> None:
    assert attention_backend(make_cfg()) is None
    assert attention_backend(make_cfg(model_optim={"attention": "flash"})) == "FLASH_ATTN"


@pytest.mark.parametrize(
    ("hardware_section", "engine", "number"),
    [
        ({"gpus": 0}, {}, 128),
        ({"gpus": 0}, {"max_num_seqs": 7}, 7),
        ({"gpus": 0}, {"performance_mode": "throughput"}, 256),
        ({"gpus": 0}, {"max_num_batched_tokens": 64}, 64),
        ({"gpus": 0}, {"tensor_parallel_size": 2}, 256),
        ({"gpus": 1}, {}, 1024),
        ({"gpus": 0.5, "accelerator_type": "H100"}, {}, 1024),
        ({"gpus": 1, "accelerator_type": "A100"}, {}, 256),
        ({"gpus": 1, "accelerator_type": "L4"}, {}, 256),
        ({"gpus": "auto", "device": "cpu"}, {}, 128),
    ],
)
def test_default_ongoing_requests(
    hardware_section: dict[str, Any], engine: dict[str, Any], number: int
) -> None:
    cfg = make_cfg(hardware=hardware_section, serving={"engine": engine})
    assert default_ongoing_requests(cfg) == number


def test_auto_gpus_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = make_cfg(hardware={"gpus": "auto"})
    for value, number in (("cpu", 128), ("gpu", 1024)):
        monkeypatch.setenv("TRUTHGPT_ACCELERATOR", value)
        assert default_ongoing_requests(cfg) == number


def test_family_is_found_by_its_entry_point() -> None:
    from truthgpt_serve.registry import MODEL_REGISTRY

    assert MODEL_REGISTRY["vllm"] is FAMILY
