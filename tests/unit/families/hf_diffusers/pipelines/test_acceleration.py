"""Accelerations as far as a machine without a GPU can prove or refuse them; each by a real call."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from deployments.hf_diffusers.config import DiffusersSettings
from deployments.hf_diffusers.deployment import DiffusersModel
from deployments.hf_diffusers.pipelines.acceleration import batch_buckets, compile_blocks
from deployments.hf_diffusers.pipelines.attention import (
    XFORMERS_RECIPE,
    RefusedError,
    Shape,
    check_result,
    choose_attention,
    fastest_first,
    probe,
    read_shape,
)
from deployments.hf_diffusers.pipelines.loading import check_vae, choose_device, choose_dtype
from deployments.hf_diffusers.pipelines.quantization import check_quantization
from tests.support.image_models import make_cfg, open_model, save_model
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.errors import ConfigError

SETTINGS = {"default_steps": 3, "default_size": "64x64"}
CPU = torch.device("cpu")
SHAPE = Shape(16, 2, 16, CPU, torch.float32)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides a GPU that this machine may have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("flux", tmp_path_factory.mktemp("flux"))


async def draw(weights: Path, engine: dict[str, Any] | None = None, **sections: Any) -> Any:
    """Returns the pixels of one image as whole numbers."""
    with open_model(make_cfg(weights, {**SETTINGS, **(engine or {})}, **sections)) as model:
        return await pixels(model)


async def pixels(model: DiffusersModel, **more: Any) -> Any:
    answer = await model.infer({"prompt": "a boat", "seed": 1, **more})
    return np.asarray(answer["image"], dtype=int)


def no_op() -> None:
    """A denoiser that works with every kernel."""


# -- attention


def test_torchs_own_attention_is_proved_by_a_call() -> None:
    assert probe("sdpa", SHAPE) > 0
    assert probe("native", SHAPE) > 0


@pytest.mark.parametrize(
    ("name", "package"),
    [("xformers", "xformers"), ("flash", "flash_attn"), ("sage", "sageattention")],
)
def test_a_kernel_that_does_not_work_is_refused_with_a_recipe(name: str, package: str) -> None:
    assert importlib.util.find_spec(package) is None
    denoiser = create_pipeline("flux").transformer
    with pytest.raises(ConfigError) as caught:
        choose_attention(name, denoiser, SHAPE, no_op)
    (fault,) = caught.value.faults
    assert fault.place == "model_optim.attention"
    assert f"{name} does not work with torch {torch.__version__} on cpu" in fault.message
    assert f"{package.replace('_', '-')} is not installed" in fault.message
    assert "or write sdpa" in fault.fix
    if name == "xformers":
        assert "runtime_env: {pip: ['torch==2.10.0', 'xformers==0.0.35']}" in fault.fix


def test_the_recipe_names_the_extras_pair(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pair = project["optional-dependencies"]["xformers"]
    assert pair == ["torch==2.10.0", "xformers==0.0.35"]
    assert all(f"'{pin}'" in XFORMERS_RECIPE for pin in pair)
    assert all(pin in (root / "docs" / "images.md").read_text() for pin in pair)


def test_a_kernel_without_an_implementation_for_cpu_is_refused() -> None:
    with pytest.raises(RefusedError, match="Error"):
        probe("cudnn", SHAPE)


def test_auto_takes_torchs_own_on_a_cpu() -> None:
    assert fastest_first(SHAPE) == ["sdpa"]
    assert choose_attention("auto", create_pipeline("flux").transformer, SHAPE, no_op) == "sdpa"


def test_auto_passes_over_a_kernel_that_the_denoiser_cannot_use() -> None:
    def fail() -> None:
        raise ValueError("`attn_mask` is not supported")

    transformer = create_pipeline("flux").transformer
    assert choose_attention("auto", transformer, SHAPE, fail) == "sdpa"
    with pytest.raises(ConfigError, match=r"the denoiser fails with it: ValueError: `attn_mask`"):
        choose_attention("native", transformer, SHAPE, fail)


def test_a_unet_has_no_kernels_by_name() -> None:
    unet = create_pipeline("sdxl").unet
    assert choose_attention("sdpa", unet, SHAPE, no_op) == "sdpa"
    assert choose_attention("native", unet, SHAPE, no_op) == "native"
    shape = read_shape(unet, 10**6, CPU, torch.float32)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert shape.tokens == 4096
    assert shape.heads * shape.head_dim in {
        module.to_q.out_features for module in unet.modules() if hasattr(module, "to_q")
    }
    assert attention.heads > 0


@pytest.mark.usefixtures("no_gpu")
async def test_a_start_with_a_kernel_that_does_not_work_fails(sdxl: Path) -> None:
    cfg = make_cfg(sdxl, SETTINGS, hardware={"gpus": "auto"}, model_optim={"attention": "xformers"})
    with pytest.raises(ConfigError, match="xformers is not installed"):
        DiffusersModel().load(cfg)


@pytest.mark.parametrize("name", ["auto", "sdpa", "native"])
async def test_torchs_own_attention_does_not_change_the_image(flux: Path, name: str) -> None:
    found = await draw(flux, model_optim={"attention": name})
    stock = DiffusionPipeline.from_pretrained(flux)
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(1)
    image = stock(
        prompt="a boat", width=64, height=64, num_inference_steps=3, generator=generator
    ).images[0]
    assert np.abs(found - np.asarray(image, dtype=int)).max() <= 1


# -- number formats and devices


def test_auto_takes_the_checkpoints_format_where_the_device_has_it() -> None:
    assert choose_dtype("auto", "float16", CPU) is torch.float32
    assert choose_dtype("auto", "bfloat16", CPU) is torch.bfloat16
    assert choose_dtype("auto", "float32", CPU) is torch.float32
    assert choose_dtype("float16", "float32", CPU) is torch.float16


async def test_the_format_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    create_pipeline("sdxl").to(torch.bfloat16).save_pretrained(tmp_path)
    with open_model(make_cfg(tmp_path, SETTINGS)) as model:
        roles = model._engine._loaded.roles
        assert {pipe.unet.dtype for pipe in roles.values()} == {torch.bfloat16}
        assert {pipe.vae.dtype for pipe in roles.values()} == {torch.bfloat16}
        assert len({id(pipe.unet) for pipe in roles.values()}) == 1
        assert (await pixels(model)).std() > 0


def test_float16_with_a_vae_that_overflows_is_refused() -> None:
    pipeline = create_pipeline("sdxl")
    pipeline.vae.register_to_config(force_upcast=True)
    check_vae(pipeline, torch.bfloat16, "auto")
    with pytest.raises(ConfigError, match=r"model_optim.dtype: float16: .*serving.engine.vae"):
        check_vae(pipeline, torch.float16, "float16")


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_named() -> None:
    assert choose_device({"gpus": "auto", "device": "auto"}) == CPU
    assert choose_device({"gpus": 0, "device": "auto"}) == CPU
    for hardware in ({"gpus": 1, "device": "auto"}, {"gpus": "auto", "device": "cuda"}):
        with pytest.raises(ConfigError, match="asks for a GPU, and torch"):
            choose_device(hardware)


async def test_another_vae(sdxl: Path, tmp_path: Path) -> None:
    create_pipeline("sdxl", seed=7).vae.save_pretrained(tmp_path)
    assert (await draw(sdxl) != await draw(sdxl, {"vae": str(tmp_path)})).any()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"serving.engine.vae: .* cannot be loaded"):
        await draw(sdxl, {"vae": str(tmp_path)})


# -- quantization


def test_a_quantization_without_its_package_is_refused() -> None:
    assert importlib.util.find_spec("bitsandbytes") is None
    message = "needs the package bitsandbytes.*pip install bitsandbytes"
    with pytest.raises(ConfigError, match=message):
        check_quantization("bitsandbytes-4bit")


@pytest.mark.parametrize("kind", ["flux", "sdxl"])
async def test_a_denoiser_from_a_gguf_file(kind: str, tmp_path: Path) -> None:
    weights = save_model(kind, tmp_path / kind)
    engine = {**SETTINGS, "gguf_file": str(save_gguf(kind, tmp_path / "weights.gguf"))}
    optim = {"quantization": "gguf", "dtype": "float32"}
    with open_model(make_cfg(weights, engine, model_optim=optim)) as model:
        base = model._engine._loaded.base
        modules = (base.unet if kind == "sdxl" else base.transformer).modules()
        assert any("GGUF" in type(module).__name__ for module in modules)
        assert model.acceleration["batching"] == "batched"
        found = await pixels(model)
    assert 0 < np.abs(found - await draw(weights)).mean() < 1


async def test_a_gguf_file_that_does_not_fit_is_named(sdxl: Path, tmp_path: Path) -> None:
    optim = {"quantization": "gguf"}
    for file in (save_gguf("flux", tmp_path / "flux.gguf"), tmp_path / "torn.gguf"):
        if not file.exists():
            file.write_bytes((tmp_path / "flux.gguf").read_bytes()[:200])
        with pytest.raises(ConfigError, match=r"serving.engine.gguf_file: .* cannot be loaded"):
            await draw(sdxl, {"gguf_file": str(file)}, model_optim=optim)


def save_gguf(kind: str, file: Path) -> Path:
    """Writes the tiny denoiser of this kind, its matrices in blocks of 32 numbers of 8 bits."""
    pipeline = create_pipeline(kind)
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    writer = gguf.GGUFWriter(file, kind)
    small = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in denoiser.state_dict().items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(values, small), raw_dtype=small)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


async def test_torchao_on_a_cpu(flux: Path) -> None:
    exact = await draw(flux)
    optim = {"quantization": "torchao-int8"}
    with open_model(make_cfg(flux, SETTINGS, model_optim=optim)) as model:
        weight = model._engine._loaded.base.transformer.transformer_blocks[0].attn.to_q.weight
        assert "Int8Tensor" in type(weight).__name__
        found = await pixels(model)
    assert 0 < np.abs(found - exact).mean() < 4
    with pytest.raises(ConfigError, match="torchao-float8 needs an NVIDIA GPU"):
        check_quantization("torchao-float8")


# -- memory and compilation


async def test_switches_that_do_not_change_the_image(sdxl: Path) -> None:
    exact = await draw(sdxl)
    switched = await draw(sdxl, {"vae_slicing": True, "channels_last": True})
    assert np.abs(exact - switched).max() <= 1
    small = {"default_size": "32x32", "vae_tiling": True}
    whole = await draw(sdxl, small | {"vae_tiling": False})
    assert np.abs(whole - await draw(sdxl, small)).max() <= 1  # one tile holds the image
    assert (exact != await draw(sdxl, {"vae_tiling": True})).any()


async def test_compiled_blocks_give_the_same_image(sdxl: Path) -> None:
    cfg = make_cfg(sdxl, {**SETTINGS, "max_rows": 4}, model_optim={"compile": True})
    with open_model(cfg) as model:
        found = await pixels(model)
    assert np.abs(found - await draw(sdxl)).max() <= 1


def test_a_compiler_that_does_not_work_is_named(tmp_path: Path) -> None:
    program = (
        "import torch\n"
        "from deployments.hf_diffusers.pipelines.acceleration import compile_blocks\n"
        "compile_blocks(torch.nn.Linear(2, 2))\n"
    )
    broken = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | broken,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "model_optim.compile: torch.compile does not work here" in last
    assert "install a C++ compiler, or write false" in last


def test_a_denoiser_without_repeated_blocks_is_named() -> None:
    with pytest.raises(ConfigError, match="Linear cannot be compiled by blocks"):
        compile_blocks(torch.nn.Linear(2, 2))


def test_batch_sizes_of_compiled_code() -> None:
    settings = DiffusersSettings(max_rows=12)
    assert batch_buckets(settings, compiled=True) == (1, 2, 4, 8)
    assert batch_buckets(settings, compiled=False) == ()
    given = DiffusersSettings(batch_buckets=[2, 6])
    assert batch_buckets(given, compiled=False) == (2, 6)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_without_a_gpu_is_refused(sdxl: Path, offload: str) -> None:
    cfg = make_cfg(sdxl, {**SETTINGS, "offload": offload}, hardware={"gpus": "auto"})
    with pytest.raises(ConfigError, match=f"serving.engine.offload: {offload} moves weights"):
        DiffusersModel().load(cfg)


# -- step caches


@pytest.mark.parametrize("kind", ["first_block", "taylorseer"])
async def test_a_step_cache_runs_requests_alone_and_forgets_them(flux: Path, kind: str) -> None:
    cache = {"step_cache": kind, "step_cache_threshold": 0.5}
    exact = await draw(flux, {"default_steps": 8})
    with open_model(make_cfg(flux, {**SETTINGS, **cache, "default_steps": 8})) as model:
        first, other, again = [
            await pixels(model, prompt=prompt) for prompt in ("a boat", "fog", "a boat")
        ]
        runs = model._engine.statistics().exclusive_runs
    assert runs == 3
    assert (first == again).all()
    assert (first != other).any()
    assert np.abs(first - exact).mean() > 0


async def test_a_step_cache_that_does_not_fit_is_refused(sdxl: Path) -> None:
    with pytest.raises(ConfigError, match="UNet2DConditionModel has no step cache"):
        await draw(sdxl, {"step_cache": "first_block"})


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_kernel_with_another_result_is_refused(value: float) -> None:
    expected = torch.zeros(1, 4, 2, 8)
    check_result("flash", expected + 0.01, expected)
    with pytest.raises(RefusedError, match="its result differs from torch's by"):
        check_result("flash", expected + value, expected)
