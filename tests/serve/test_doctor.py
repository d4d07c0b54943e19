"""What `truthgpt doctor` finds out about vLLM: an engine starts, in a process of its own."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.config import load_model_config
from truthgpt_serve.doctor.families import examine


def cfg(**sections: Any) -> Any:
    weights = {"family": "vllm", "name_or_path": "org/model"}
    return load_model_config({"model": weights, **sections}).to_cfg()


def test_a_tiny_model_writes_a_text_as_a_configuration_asks() -> None:
    wanted = cfg(
        hardware={"gpus": 0},
        model_optim={"dtype": "float32", "quantization": "fp8"},
        serving={"engine": {"enforce_eager": True}},
    )
    impossible = cfg(hardware={"gpus": 2})
    found = examine("vllm", [wanted, impossible])
    platform, engine, quantization = found[0]
    assert platform.works, platform
    assert engine.works, engine
    assert engine.name == "the engine with dtype float32, enforce_eager True"
    assert "attention CPU_ATTN" in engine.detail
    assert quantization.name == "quantization fp8"
    hardware = found[1][1]
    assert (hardware.name, hardware.works) == ("hardware", False)
    assert "extra `gpu`" in hardware.fix
