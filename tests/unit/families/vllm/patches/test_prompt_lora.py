"""Mends of vLLM's classes, on CPU; for GPU the adapter indices that its kernels would read."""

from __future__ import annotations

import importlib.util
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from deployments.vllm.patches import prompt_lora  # noqa: E402


@pytest.mark.parametrize("v2", [False, True])
def test_what_it_changes_is_still_there(v2: bool) -> None:
    prompt_lora.mend(v2=v2)
    prompt_lora.mend(v2=v2)
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    changed = PromptLogprobsWorker.compute_prompt_logprobs if v2 else None
    changed = changed or GPUModelRunner._get_prompt_logprobs_dict
    assert inspect.unwrap(changed) is not changed


class Wrapper:
    """vLLM's wrapper of GPU kernels, reduced to the indices that it holds."""

    def __init__(self, tokens: list[int], sampled: list[int], meta: Any) -> None:
        self.token_lora_indices = torch.tensor(tokens)
        self._sampler_indices = torch.full((16,), 7)
        self._sampler_indices[: len(sampled)] = torch.tensor(sampled)
        self.indices_len = [len(tokens), len(sampled), len(sampled), len(tokens)]
        self.prompt_mapping_meta = meta
        meta.prepare_tensors(self.sampler_indices)

    @property
    def sampler_indices(self) -> Any:
        return self._sampler_indices[: self.indices_len[1]]


def load_kernel_metadata() -> Any:
    """Returns vLLM's class without its package, which wants Triton."""
    package = find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "lora/ops/triton_ops/lora_kernel_metadata.py"
    spec = importlib.util.spec_from_file_location("lora_kernel_metadata", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LoRAKernelMeta


def test_gpu_kernels_get_the_indices_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = load_kernel_metadata().make(3, 16, "cpu")
    wrapper = Wrapper([0, 0, 0, -1, -1, 2, 2, 2], [0, -1, 2], meta)
    seen: list[list[int]] = []

    class Model:
        def compute_logits(self, rows: Any) -> Any:
            seen.append(meta.token_lora_mapping[: len(rows)].tolist())
            assert wrapper.sampler_indices.tolist() == seen[-1]
            counts = meta.num_tokens_per_lora.tolist()
            assert sum(counts) == len(rows)
            return rows * 1.0

    monkeypatch.setattr(prompt_lora, "_find_wrapper", lambda model: wrapper)
    states = torch.zeros(32, 4)[2:12]  # padded, and a view itself
    rows = prompt_lora._RowsOfPrompts(Model().compute_logits, states)
    rows.compute_logits(states[1:5])
    rows.compute_logits(states[5:8])
    assert seen == [[0, 0, -1, -1], [2, 2, 2]]
    assert wrapper.sampler_indices.tolist() == [0, -1, 2]
    assert meta.token_lora_mapping[:3].tolist() == [0, -1, 2]


def test_rows_of_another_tensor_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lora, "_find_wrapper", lambda model: object())

    class Model:
        def compute_logits(self, rows: Any) -> Any:
            return rows

    rows = prompt_lora._RowsOfPrompts(Model().compute_logits, torch.zeros(4, 4))
    with pytest.raises(RuntimeError, match="adapt"):
        rows.compute_logits(torch.zeros(2, 4))
