"""What the family `hf-transformers` refuses, in a configuration and when it meets the machine."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.hf_transformers.config import FAMILY, default_ongoing_requests
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.registry import MODEL_REGISTRY


def faults(sections: dict[str, Any]) -> list[str]:
    given = {"model": {"family": "hf-transformers", "name_or_path": "org/model"}, **sections}
    return [str(fault) for fault in check_model(load_model_config(given, place="x.yaml"))]


def test_the_family_is_found_and_its_tasks_have_their_classes() -> None:
    assert MODEL_REGISTRY["hf-transformers"] is FAMILY
    names = {task: FAMILY.load_class(task).__name__ for task in FAMILY.tasks}
    assert names == {
        "text-generation": "TextModel",
        "embedding": "EmbeddingModel",
        "custom": "PipelineModel",
    }
    assert faults({}) == []
    assert faults({"task": "embedding", "serving": {"engine": {"pooling": "cls"}}}) == []


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"task": "image-generation"}, "task", "cannot do 'image-generation'"),
        ({"task": "custom"}, "serving.engine", "needs the transformers pipeline"),
        (
            {"serving": {"engine": {"pipeline_task": "fill-mask"}}},
            "serving.engine.pipeline_task",
            "has no effect with task: text-generation",
        ),
        ({"serving": {"engine": {"poling": "cls"}}}, "serving.engine", "poling"),
        (
            {"serving": {"engine": {"batching": "continuous", "use_cache": False}}},
            "serving.engine.batching",
            "needs the cache",
        ),
        ({"hardware": {"gpus": 2}}, "hardware.gpus", "uses one GPU"),
        ({"model_optim": {"attention": "spda"}}, "model_optim.attention", "did you mean 'sdpa'"),
        (
            {"model_optim": {"attention": "flash_attention_2"}, "hardware": {"gpus": 0}},
            "model_optim.attention",
            "needs an NVIDIA GPU",
        ),
        (
            {"model_optim": {"attention": "flash_attention_2", "dtype": "float32"}},
            "model_optim.attention",
            "not in float32",
        ),
        ({"model_optim": {"quantization": "int8"}}, "model_optim.quantization", "no quantization"),
        (
            {"model_optim": {"quantization": "bitsandbytes-4bit"}, "hardware": {"gpus": 0}},
            "model_optim.quantization",
            "needs an NVIDIA GPU",
        ),
        (
            {"serving": {"adapters": [{"name": "a", "path": "org/a"}]}},
            "serving.adapters",
            "beside the",
        ),
    ],
)
def test_a_fault_is_found_before_anything_is_loaded(
    sections: dict[str, Any], place: str, message: str
) -> None:
    found = faults(sections)
    assert len(found) == 1, found
    assert found[0].startswith(f"x.yaml: {place}")
    assert message in found[0]


def test_a_mistyped_pipeline_is_named() -> None:
    engine = {"pipeline_task": "image-clasification"}
    found = faults({"task": "custom", "serving": {"engine": engine}})
    assert found[0].startswith("x.yaml: serving.engine.pipeline_task: must be one of audio-")
    assert "did you mean 'image-classification'" in found[0] or "image-clasification" in found[0]


def test_the_limits_follow_the_task() -> None:
    cfg: dict[str, Any] = {"task": "text-generation", "serving": {"engine": {}}}
    assert default_ongoing_requests(cfg) == 32
    cfg["serving"]["engine"]["max_rows"] = 5
    assert default_ongoing_requests(cfg) == 5
    assert default_ongoing_requests({**cfg, "task": "embedding"}) == 256
    assert default_ongoing_requests({**cfg, "task": "custom"}) == 16
