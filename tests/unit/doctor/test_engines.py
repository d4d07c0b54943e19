"""What the built-in families find out about this machine, with their real engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from deployments.onnx.doctor import examine as examine_onnx
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import Probe
from truthgpt_serve.doctor.families import examine
from truthgpt_serve.registry import MODEL_REGISTRY

ON_CPU = not torch.cuda.is_available()


def cfg(family: str, task: str, engine: dict[str, Any] | None = None, **optim: Any) -> Any:
    sections: Mapping[str, Any] = {
        "task": task,
        "model": {"family": family, "name_or_path": "org/model"},
        "model_optim": optim,
        "hardware": {"gpus": 0},
        "serving": {"engine": engine or {}},
    }
    return load_model_config(sections).to_cfg()


def by_name(probes: list[Probe]) -> dict[str, Probe]:
    """Returns them by the beginning of their names; what does not work must say why."""
    for probe in probes:
        assert probe.works or (probe.detail and probe.fix), probe
    return {probe.name.partition(" (")[0]: probe for probe in probes}


@pytest.mark.parametrize("name", ["vllm", "hf-transformers", "hf-diffusers", "onnxruntime"])
def test_every_family_with_an_engine_has_a_doctor(name: str) -> None:
    assert MODEL_REGISTRY[name].doctor_path is not None


@pytest.mark.long("starts engines in processes of their own")
def test_transformers_tries_what_configurations_ask_for() -> None:
    task = "text-generation"
    good = cfg(
        "hf-transformers",
        task,
        {"compile_mode": "default"},
        dtype="bfloat16",
        quantization="torchao-int8",
        attention="sdpa",
        compile=True,
    )
    absent: dict[str, Any] = {"attention": "flash_attention_2", "quantization": "bitsandbytes-4bit"}
    bad = cfg("hf-transformers", task, **absent)
    found, other = (by_name(probes) for probes in examine("hf-transformers", [good, bad]))
    assert [*found] == [
        "hardware",
        "bfloat16 matmul",
        "attention sdpa",
        "quantization torchao-int8",
        "torch.compile default",
    ]
    assert all(probe.works for probe in found.values()), found
    assert other["hardware"].works
    if ON_CPU:
        assert not other["attention flash_attention_2"].works
        assert "install flash-attn" in other["attention flash_attention_2"].fix
        assert not other["quantization bitsandbytes-4bit"].works


@pytest.mark.long("starts engines in processes of their own")
def test_images_are_made_with_what_a_configuration_asks_for() -> None:
    good = cfg("hf-diffusers", "image-generation", {"vae_slicing": True}, dtype="bfloat16")
    bad = cfg("hf-diffusers", "image-generation", {"offload": "model"}, attention="sage")
    found = [by_name(probes) for probes in examine("hf-diffusers", [good, bad])]
    assert found[0]["an image"].works, found
    assert "bfloat16" in found[0]["an image"].detail
    if ON_CPU:
        assert "install sageattention" in found[1]["attention sage"].fix
        assert "moves weights to a GPU" in found[1]["an image"].detail


def test_a_session_of_onnx_runtime_runs_or_the_package_to_install_is_named() -> None:
    found = by_name(list(examine_onnx(None)))
    assert found["execution provider cpu"].works
    if not found["execution provider cuda"].works:
        assert "onnxruntime-gpu" in found["execution provider cuda"].fix
    [asked] = examine_onnx(cfg("onnxruntime", "tensor", {"execution_provider": "tensorrt"}))
    assert asked.works or "TensorRT" in asked.fix
