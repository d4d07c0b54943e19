"""GPUs, cores and turns of a vLLM engine."""

from __future__ import annotations

import asyncio
import fcntl
from pathlib import Path
from typing import Any

import pytest

from deployments.vllm.config import (
    gpu_memory_share,
    tensor_parallel_size,
)
from deployments.vllm.hardware import (
    CPU_KV_CACHE_BYTES,
    binds_threads,
    gpu_turn,
    prepare_cpu,
    turn_file,
)
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import UnavailableError


def make_cfg(**changes: Any) -> dict[str, Any]:
    source = {"model": {"name_or_path": "some/model"}, "hardware": {"gpus": 0}, **changes}
    return load_model_config(source).to_cfg()


@pytest.mark.parametrize(
    ("gpus", "share"), [(0, None), (1, None), (2, None), ("auto", None), (0.4, 0.38), (0.25, 0.23)]
)
def test_fraction_of_a_gpu_less_the_margin(gpus: Any, share: float | None) -> None:
    assert gpu_memory_share(make_cfg(hardware={"gpus": gpus})) == share


def test_whole_gpus_become_tensor_parallelism() -> None:
    assert tensor_parallel_size(make_cfg(hardware={"gpus": 4})) == 4
    engine = {"pipeline_parallel_size": 2}
    cfg = make_cfg(hardware={"gpus": 4}, serving={"engine": engine})
    assert tensor_parallel_size(cfg) == 2
    assert tensor_parallel_size(make_cfg(hardware={"gpus": 0.5})) == 1


def test_cpu_threads_follow_cpus_and_bind_no_core() -> None:
    environ = {"OMP_NUM_THREADS": "9"}
    cfg = make_cfg(hardware={"gpus": 0, "cpus": 3})
    assert prepare_cpu(cfg, environ) == CPU_KV_CACHE_BYTES
    assert environ == {"OMP_NUM_THREADS": "3", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert not binds_threads(environ)


def test_cpu_settings_from_outside_are_kept() -> None:
    environ = {"VLLM_CPU_OMP_THREADS_BIND": "0-3", "VLLM_CPU_KVCACHE_SPACE": "2"}
    assert prepare_cpu(make_cfg(), environ) is None
    assert environ == {"VLLM_CPU_OMP_THREADS_BIND": "0-3", "VLLM_CPU_KVCACHE_SPACE": "2"}
    assert binds_threads(environ)


@pytest.mark.parametrize(("eager", "expected"), [(True, "1"), (False, None)])
def test_an_eager_engine_compiles_nothing_for_a_request(eager: bool, expected: str | None) -> None:
    environ: dict[str, str] = {}
    prepare_cpu(make_cfg(serving={"engine": {"enforce_eager": eager}}), environ)
    assert environ.get("TORCH_COMPILE_DISABLE") == expected


def test_kv_cache_of_the_model_wins_over_the_environment() -> None:
    environ = {"VLLM_CPU_KVCACHE_SPACE": "2"}
    engine = {"kv_cache_memory_bytes": "64M"}
    assert prepare_cpu(make_cfg(serving={"engine": engine}), environ) is None
    assert "VLLM_CPU_KVCACHE_SPACE" not in environ


async def test_replicas_of_one_gpu_take_turns(tmp_path: Path) -> None:
    cfg = make_cfg(hardware={"gpus": 0.5})
    events: list[str] = []

    async def start(name: str) -> None:
        async with gpu_turn(cfg, timeout_s=10, folder=tmp_path):
            events.append(f"{name} begins")
            await asyncio.sleep(0.05)
            events.append(f"{name} ends")

    await asyncio.gather(start("a"), start("b"))
    assert [event.split()[1] for event in events] == ["begins", "ends", "begins", "ends"]


async def test_turn_that_does_not_come_is_an_error(tmp_path: Path) -> None:
    shared, whole = make_cfg(hardware={"gpus": 0.5}), make_cfg(hardware={"gpus": 1})
    with turn_file(tmp_path).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match=r"were still starting after 0\.1 s"):
            async with gpu_turn(shared, timeout_s=0.1, folder=tmp_path):
                pass
        async with gpu_turn(whole, timeout_s=0.1, folder=tmp_path):
            pass
