"""What an engine does on machines without compilers, made of folders with and without programs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from deployments.vllm.engine import Engine
from deployments.vllm.tiny_model import make_tiny_llama
from deployments.vllm.toolchain import (
    SAMPLER_VARIABLE,
    check_cxx,
    choose_sampler,
    find_nvcc,
)
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError


def make_machine(folder: Path, *programs: str) -> dict[str, str]:
    """Returns the environment of a machine that has these programs and no others."""
    for name in programs:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return {"PATH": str(folder / "bin"), "CUDA_HOME": str(folder)}


def make_cfg(**engine: Any) -> dict[str, Any]:
    source = {"model": {"name_or_path": "some/model"}, "hardware": {"gpus": 0}}
    return load_model_config({**source, "serving": {"engine": engine}}).to_cfg()


@pytest.mark.parametrize(
    ("programs", "missing"),
    [
        ((), "no nvcc and no ninja and no C++ compiler"),
        (("bin/g++", "bin/ninja"), "there is no nvcc."),
        (("bin/nvcc", "bin/g++"), "there is no ninja."),
        (("bin/nvcc", "bin/ninja"), "there is no C++ compiler."),
    ],
)
def test_the_sampler_is_off_where_it_cannot_be_compiled(
    tmp_path: Path,
    programs: tuple[str, ...],
    missing: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    environ = make_machine(tmp_path, *programs)
    with caplog.at_level(logging.WARNING):
        assert choose_sampler(environ, lambda package: False)
    assert environ[SAMPLER_VARIABLE] == "0"
    assert missing in caplog.text
    assert f"{SAMPLER_VARIABLE}=0" in caplog.text


def test_the_sampler_stays_where_it_can_be_had(tmp_path: Path) -> None:
    complete = make_machine(tmp_path, "bin/nvcc", "bin/g++", "bin/ninja")
    assert not choose_sampler(complete, lambda package: False)
    assert SAMPLER_VARIABLE not in complete
    bare = make_machine(tmp_path / "bare")
    assert not choose_sampler(bare, lambda package: package == "flashinfer_jit_cache")
    assert SAMPLER_VARIABLE not in bare


def test_a_choice_from_outside_is_kept(tmp_path: Path) -> None:
    environ = {**make_machine(tmp_path), SAMPLER_VARIABLE: "1"}
    assert not choose_sampler(environ, lambda package: False)
    assert environ[SAMPLER_VARIABLE] == "1"


def test_nvcc_is_looked_for_where_flashinfer_does(tmp_path: Path) -> None:
    environ = make_machine(tmp_path, "bin/nvcc")
    nvcc = str(tmp_path / "bin" / "nvcc")
    assert find_nvcc(environ) == nvcc
    assert find_nvcc({"PATH": environ["PATH"]}) == nvcc
    assert find_nvcc({**environ, "CUDA_HOME": str(tmp_path / "none")}) is None


def test_a_model_that_would_be_compiled_without_a_compiler_is_refused(tmp_path: Path) -> None:
    environ = make_machine(tmp_path)
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler") as caught:
        check_cxx(make_cfg(), environ)
    [fault] = caught.value.faults
    assert fault.place == "serving.engine.enforce_eager"
    assert "apt-get install g++" in fault.fix
    with pytest.raises(ConfigError, match="clang"):
        check_cxx(make_cfg(), {**environ, "CXX": "clang++"})


@pytest.mark.parametrize(
    "engine",
    [
        {"enforce_eager": True},
        {"compilation_config": {"mode": 0}},
        {"optimization_level": 0},
    ],
)
def test_a_model_that_is_not_compiled_needs_none(engine: dict[str, Any], tmp_path: Path) -> None:
    check_cxx(make_cfg(**engine), make_machine(tmp_path))


def test_a_compiler_is_enough(tmp_path: Path) -> None:
    check_cxx(make_cfg(), make_machine(tmp_path, "bin/g++"))
    other = make_machine(tmp_path / "other", "bin/clang++")
    check_cxx(make_cfg(), {**other, "CXX": "clang++"})
    check_cxx(make_cfg(), {**make_machine(tmp_path / "none"), "TORCH_COMPILE_DISABLE": "1"})


def test_the_engine_refuses_it_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_llama(tmp_path / "model")
    monkeypatch.setenv("PATH", make_machine(tmp_path / "machine")["PATH"])
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    source = {"model": {"family": "vllm", "name_or_path": str(folder)}, "hardware": {"gpus": 0}}
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        Engine(load_model_config(source).to_cfg(), "tiny")
