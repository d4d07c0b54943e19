"""What stands on the layers of a model by its method: classes of transformers, labels, adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from truthgpt_serve.config.training.methods import method_of

_CLASSES: dict[str, Any] = {
    "language": AutoModelForCausalLM,
    "score": AutoModelForSequenceClassification,
    "classes": AutoModelForSequenceClassification,
    "none": AutoModel,
}
_ADAPTER_TASKS = {
    "language": "CAUSAL_LM",
    "score": "SEQ_CLS",
    "classes": "SEQ_CLS",
    "none": "FEATURE_EXTRACTION",
}


def model_class(cfg: Mapping[str, Any]) -> Any:
    """Returns transformers' class that loads what the method trains."""
    return _CLASSES[method_of(cfg).head]


def adapter_task(cfg: Mapping[str, Any]) -> str:
    """Returns peft's name for what an adapter of the method is on; it keeps a new head whole."""
    return _ADAPTER_TASKS[method_of(cfg).head]


def set_head(cfg: Mapping[str, Any], config: Any, labels: Sequence[str] = ()) -> None:
    """Writes into a model's configuration what its head gives.

    Args:
        cfg: The whole configuration.
        config: The model's own.
        labels: Names of the classes, where the head tells them apart.
    """
    head = method_of(cfg).head
    if head == "score":
        config.num_labels = 1
    if head == "classes" and labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
