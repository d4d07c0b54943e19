"""The vLLM engine that the modules of this folder share: adapters of all kinds, good and bad."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deployments.vllm.tiny_model import HIDDEN, VOCABULARY, make_tiny_adapter, make_tiny_llama
from tests.serve.vllm_process import Server, make_config, serve
from tests.support.references import greedy_texts

GOOD = {"attention": 3, "head": 4, "good": 1}
"""The seeds of the adapters that can be served; `head` changes `lm_head` too."""
BAD = ("dora", "cut", "odd", "away")
"""Those that cannot: of `odd` vLLM alone finds it, when it loads."""
PROMPTS = ["Hello world", "The quick brown fox", "Once upon a time there was a", "12 + 30 ="]
TOKENS = 24
MAX_BODY_BYTES = 2**20


@pytest.fixture(scope="package")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_llama(folder / "llama")
    for name, seed in GOOD.items():
        make_tiny_adapter(folder / name, seed=seed)
    target_the_head(folder / "head")
    for name in ("dora", "cut", "odd"):
        make_tiny_adapter(folder / name)
    config = folder / "dora" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    weights = folder / "odd" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({k.replace("q_proj", "odd_experts"): v for k, v in tensors.items()}, weights)
    return folder


def target_the_head(folder: Path) -> None:
    """Has an adapter change `lm_head` too."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].append("lm_head")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(5)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, shape in {"A": (config["r"], HIDDEN), "B": (VOCABULARY, config["r"])}.items():
        weights = draw.standard_normal(shape, dtype=np.float32) * np.float32(shape[1] ** -0.5)
        tensors[f"base_model.model.lm_head.lora_{name}.weight"] = weights
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


@pytest.fixture(scope="package")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    places = {name: str(models / name) for name in ("dora", *GOOD, "cut", "odd")}
    places["away"] = "nobody/no-such-adapter"
    adapters = [{"name": name, "path": path} for name, path in places.items()]
    # A long prompt takes several steps, beside the others.
    engine = {"max_num_batched_tokens": 64, "max_num_seqs": 16}
    serving = {"adapters": adapters, "max_body_bytes": MAX_BODY_BYTES}
    config = make_config(models, serving=serving, engine=engine)
    with serve(config, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


@pytest.fixture(scope="package")
def reference(models: Path) -> dict[str, list[str]]:
    """What `transformers` says to `PROMPTS`: the model `alone`, and `adapted` by `good`."""
    return {
        key: greedy_texts(models / "llama", PROMPTS, TOKENS, adapter=adapter)
        for key, adapter in (("alone", None), ("adapted", models / "good"))
    }
