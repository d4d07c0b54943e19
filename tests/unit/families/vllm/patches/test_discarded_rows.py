"""Generators of rows that vLLM discards."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("vllm")

from deployments.vllm.patches import discarded_rows


def test_generators_of_discarded_rows_are_mended() -> None:
    discarded_rows.mend()
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    for method in (GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync):
        assert inspect.unwrap(method) is not method
