"""Models and adapters that cannot load are found by their files, before anything starts."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deployments.vllm.adapters.files import find_problems
from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama
from truthgpt_serve import model_files
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.model_files import ModelFileError, read_header

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_tiny_llama(folder / "llama")
    make_tiny_adapter(folder / "adapter", rank=8)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "models"))


def configure(**values: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_config.json"
        config = json.loads(file.read_text()) | values
        file.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))

    return change


def rename(old: str, new: str) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        assert any(old in name for name in tensors)
        save_file({name.replace(old, new): value for name, value in tensors.items()}, file)

    return change


def reshape(part: str, shape: tuple[int, int]) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if part in name)
        save_file({**tensors, name: np.zeros(shape, np.float32)}, file)

    return change


def write(name: str, content: str | bytes | None) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / name
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def drop(part: str) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if part in name)
        save_file({k: v for k, v in tensors.items() if k != name}, file)

    return change


def into_shards(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors.index.json").write_text("{}")


BAD_ADAPTERS = {
    "modules-to-save": (configure(modules_to_save=["lm_head"]), "modules_to_save is ['lm_head']"),
    "dora": (configure(use_dora=True), "use_dora is set"),
    "bias": (configure(bias="all"), "bias is 'all'"),
    "lora-bias": (configure(lora_bias=True), "lora_bias is set"),
    "alora": (configure(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens is set"),
    "replication": (configure(layer_replication=[[0, 1]]), "layer_replication is set"),
    "qalora": (configure(use_qalora=True), "use_qalora is set"),
    "bdlora": (configure(use_bdlora={"x": 1}), "use_bdlora is set"),
    "pissa": (configure(init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "rank": (configure(r=4096), "rank 4096 is more than"),
    "rank-pattern": (configure(rank_pattern={"q_proj": 4096}), "rank 4096 is more than"),
    "no-rank": (configure(r="absent"), "r is missing"),
    "zero-rank": (configure(r=0), "r must be a positive integer, not 0"),
    "text-rank": (configure(r="8"), "r must be a positive integer, not '8'"),
    "no-alpha": (configure(lora_alpha="absent"), "lora_alpha is missing"),
    "no-modules": (configure(target_modules="absent"), "target_modules is missing"),
    "other-rank": (configure(r=16), "has rank 8, but adapter_config.json says r 16"),
    "not-lora": (configure(peft_type="LOHA"), "peft_type is 'LOHA'"),
    "prompt-tuning": (configure(peft_type="PROMPT_TUNING"), "peft_type is 'PROMPT_TUNING'"),
    "no-config": (write("adapter_config.json", None), "has no adapter_config.json"),
    "config-is-none": (write("adapter_config.json", "{"), "adapter_config.json: is not JSON"),
    "config-is-list": (write("adapter_config.json", "[]"), "is not a JSON object"),
    "no-weights": (write("adapter_model.safetensors", None), "has no weights"),
    "shards": (into_shards, "vLLM reads no adapter in several files"),
    "pointer": (write("adapter_model.safetensors", POINTER), "is a Git LFS pointer"),
    "empty": (write("adapter_model.safetensors", b""), "is too short"),
    "junk": (write("adapter_model.safetensors", b"junk" * 100), "is not a safetensors file"),
    "no-tensors": (write("adapter_model.safetensors", b"\2" + bytes(7) + b"{}"), "has no weights"),
    "no-such-module": (rename("q_proj", "query_key"), "is for a module that is not one"),
    "no-such-layer": (rename("layers.1.", "layers.9."), "is for a module that is not one"),
    "no-linear-layer": (rename("self_attn.q_proj", "input_layernorm"), "that is no linear layer"),
    "magnitudes": (rename("q_proj.lora_A.weight", "q_proj.lora_magnitude_vector"), "no weights of"),
    "whole-module": (rename("q_proj.lora_A.weight", "q_proj.weight"), "no weights of a LoRA"),
    "half": (drop("q_proj.lora_B"), "has only lora_A of"),
    "other-base": (reshape("q_proj.lora_A", (8, 64)), "has shape [8, 64], which does not fit"),
    "other-base-out": (reshape("q_proj.lora_B", (64, 8)), "has shape [64, 8], which does not fit"),
}


@pytest.mark.parametrize("name", list(BAD_ADAPTERS))
def test_an_adapter_that_cannot_load_is_a_fault(name: str, folder: Path) -> None:
    change, problem = BAD_ADAPTERS[name]
    change(folder / "adapter")
    adapters = [{"name": "extra", "path": str(folder / "adapter")}]
    given = {"model": {"name_or_path": str(folder / "llama")}, "serving": {"adapters": adapters}}
    faults = check_model(load_model_config(given, place="m"))
    found = [str(fault) for fault in faults]
    assert found
    assert problem in found[0]
    assert str(folder / "adapter") in found[0]
    assert all(fault.place == "m: serving.adapters[0].path" and fault.fix for fault in faults)


@pytest.mark.parametrize(
    "change",
    [
        lambda adapter: None,
        configure(use_rslora=True),
        configure(modules_to_save=[]),
        configure(init_lora_weights="gaussian"),
        configure(target_modules="all-linear"),
        rename("base_model.model.model.", "base_model.model.model.language_model."),
    ],
)
def test_an_adapter_that_can_load_is_none(change: Any, folder: Path) -> None:
    change(folder / "adapter")
    assert list(find_problems(folder / "adapter", folder / "llama", None)) == []
    assert list(find_problems(folder / "adapter", None, 8)) == []


def test_a_limit_of_the_rank_is_kept(folder: Path) -> None:
    ((message, fix),) = find_problems(folder / "adapter", None, 4)
    assert "rank 8 is more than 4, serving.engine.max_lora_rank" in message
    assert "raise" in fix


def into_model_shards(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    shards = {"a.safetensors": names[:half], "b.safetensors": names[half:]}
    for file, some in shards.items():
        save_file({name: tensors[name] for name in some}, model / file)
    index = {"weight_map": {name: file for file, some in shards.items() for name in some}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def lose_shard(model: Path) -> None:
    into_model_shards(model)
    (model / "b.safetensors").unlink()


def cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


BAD_MODELS = {
    "missing-shard": (lose_shard, "names b.safetensors, which are not there"),
    "cut": (cut, "model.safetensors: was cut off"),
    "pointer": (write("model.safetensors", POINTER), "is a Git LFS pointer"),
    "index-is-none": (write("model.safetensors.index.json", "[]"), "is not a JSON object"),
    "index-is-empty": (write("model.safetensors.index.json", "{}"), "has no weight_map"),
    "config-is-none": (write("config.json", "{,"), "config.json: is not JSON"),
    "no-weights": (write("model.safetensors", None), "has no weights"),
    "no-tokenizer": (lose_tokenizer, "has no tokenizer"),
}


@pytest.mark.parametrize("family", ["vllm", "hf-transformers"])
@pytest.mark.parametrize("name", list(BAD_MODELS))
def test_a_model_that_cannot_load_is_a_fault(name: str, family: str, folder: Path) -> None:
    change, problem = BAD_MODELS[name]
    given = {"model": {"family": family, "name_or_path": str(folder / "llama")}}
    assert check_model(load_model_config(given, place="m")) == []
    change(folder / "llama")
    (fault,) = check_model(load_model_config(given, place="m"))
    assert fault.place == "m: model.name_or_path"
    assert problem in fault.message
    assert str(folder / "llama") in fault.message
    assert fault.fix


def test_whole_shards_are_none(folder: Path) -> None:
    into_model_shards(folder / "llama")
    given = {"model": {"name_or_path": str(folder / "llama")}}
    assert check_model(load_model_config(given, place="m")) == []


def test_a_model_to_train_from_nothing_needs_no_weights(folder: Path) -> None:
    (folder / "llama" / "model.safetensors").unlink()
    given = {"model": {"name_or_path": str(folder / "llama")}}
    config = load_model_config(given, place="m")
    assert check_model(config, for_training=True) == []
    assert len(check_model(config)) == 1
    dummy = {**given, "serving": {"engine": {"load_format": "dummy"}}}
    assert check_model(load_model_config(dummy, place="m")) == []


SHAPES = Path("models/shapes").absolute()


def pipeline(tmp_path: Path, change: Callable[[Path], None]) -> list[str]:
    folder = Path(shutil.copytree(SHAPES, tmp_path / "shapes"))
    change(folder)
    adapters = [{"name": "night", "path": str(tmp_path / "night")}]
    shutil.copytree("models/shapes-night", tmp_path / "night", dirs_exist_ok=True)
    given = {
        "task": "image-generation",
        "model": {"family": "hf-diffusers", "name_or_path": str(folder)},
        "serving": {"adapters": adapters if (tmp_path / "night").exists() else []},
    }
    return [str(fault) for fault in check_model(load_model_config(given, place="m"))]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: shutil.rmtree(folder / "vae"), "names vae, which the folder does not have"),
        (write("unet/diffusion_pytorch_model.safetensors", b"x" * 40), "is not a safetensors file"),
        (write("tokenizer/tokenizer.json", None), "tokenizer: has no tokenizer"),
        (write("model_index.json", "{"), "model_index.json: is not JSON"),
    ],
)
def test_a_pipeline_that_cannot_load_is_a_fault(change: Any, problem: str, tmp_path: Path) -> None:
    (found,) = pipeline(tmp_path, change)
    assert problem in found
    assert "m: model.name_or_path: " in found


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is too short"), (POINTER.encode(), "Git LFS pointer"), (b"{}" * 50, "not a safetens")],
)
def test_an_image_adapter_that_cannot_load_is_a_fault(
    content: bytes, problem: str, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        (tmp_path / "night").mkdir()

    assert pipeline(tmp_path, change) == []
    file = tmp_path / "night" / "pytorch_lora_weights.safetensors"
    file.write_bytes(content)
    given = {
        "task": "image-generation",
        "model": {"family": "hf-diffusers", "name_or_path": str(SHAPES)},
        "serving": {"adapters": [{"name": "night", "path": str(file.parent)}]},
    }
    (fault,) = check_model(load_model_config(given, place="m"))
    assert problem in fault.message
    assert fault.place == "m: serving.adapters[0].path"


def test_damaged_headers_never_raise_anything_else(folder: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    whole = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    file = tmp_path / "x.safetensors"
    for _ in range(300):
        content = bytearray(whole[: draw.integers(0, len(whole))])
        for place in draw.integers(0, min(len(content), 2000) or 1, 4 if content else 0):
            content[place] = draw.integers(0, 256)
        file.write_bytes(content)
        with contextlib.suppress(ModelFileError):
            read_header(file)


def test_headers_are_read_as_safetensors_does(folder: Path) -> None:
    file = folder / "llama" / "model.safetensors"
    expected = {name: value.shape for name, value in load_file(file).items()}
    assert {name: tensor.shape for name, tensor in read_header(file).items()} == expected
    assert model_files.has_tokenizer(folder / "llama")
