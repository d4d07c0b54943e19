"""The sections that say which weights, made how small and fast, on which hardware."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from truthgpt_serve.config.base import (
    MODULE_PATTERN,
    Count,
    NonNegativeNumber,
    PositiveNumber,
    Ratio,
    Refusal,
    Section,
    Text,
    read_scientific,
    refuse,
    show_value,
)


def _read_paths(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


Paths = Annotated[
    list[Text],
    BeforeValidator(_read_paths),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
                {"type": "null"},
            ]
        }
    ),
]


class ModelSection(Section):
    """Which weights, and which family runs them."""

    family: Text | None = None
    """Registered family that runs the model: `vllm`, `echo`, another installed family's name, one
    that `import` registers, or `custom` when `import` registers exactly one class. Null takes the
    family of the `task`: `vllm` for text-generation and embedding, `hf-diffusers` for
    image-generation, `onnxruntime` for tensor, `custom` for custom."""

    name_or_path: Text | None = None
    """Weights: a hub name, or a local folder or file. A relative path is looked up in the working
    directory, beside this file, then in the parent of `TRUTHGPT_CONFIG_DIR`. Required by every
    family that has weights. For the family `remote` it is the other server's address."""

    adapter: Paths = Field(default_factory=list)
    """LoRA adapter that belongs to the weights: a folder such as a run's `model/`, or a hub name;
    or a list of them, added in this order. `truthgpt train` trains the last one further, and the
    families `hf-transformers` and `hf-diffusers` add them to the weights when they load.
    `serving.adapters` instead serves an adapter beside the model, under a name of its own."""

    revision: Text | None = None
    """Branch, tag or commit of a hub model. Null takes the hub's default branch; a commit makes
    the deployment repeatable."""

    import_: Annotated[str, Field(pattern=MODULE_PATTERN)] | None = Field(
        default=None, alias="import"
    )
    """Python module to import first, such as `my_package.models`, so that its
    `@register_model(name)` runs. It must be importable where the replica runs."""


class LoraSection(Section):
    """Low-rank adapters that `truthgpt train` fits instead of the whole model."""

    enabled: bool = False
    """Train an adapter rather than all weights. Needs a family that takes adapters."""

    r: Count = 16
    """Rank of the update matrices. More can learn more and takes more memory."""

    alpha: PositiveNumber = 32
    """Scale of the update, applied as `alpha / r`. More makes the adapter's effect stronger."""

    dropout: Annotated[Ratio, Field(lt=1)] = 0.05
    """Share of the adapter's inputs dropped while training, from 0 to below 1. More regularizes
    more."""

    target_modules: Annotated[list[Text], Field(min_length=1)] | None = None
    """Names of the linear layers that get an adapter, such as `[q_proj, v_proj]`. Null takes the
    usual ones: every linear layer of a text model but its output head, the attention layers of an
    image model. More layers learn more and take more memory."""

    modules_to_save: Annotated[list[Text], Field(min_length=1)] | None = None
    """Names of modules of a text model that are trained whole beside the adapter and saved with it,
    such as `[embed_tokens, lm_head]` for added tokens. More takes much more memory."""

    dora: bool = False
    """Learn the length of each weight's column apart from its direction (DoRA): closer to training
    all weights, slower, and served by vLLM only once it is merged."""

    rslora: bool = False
    """Scale the update by `alpha / sqrt(r)` instead, so that a large `r` does not weaken it."""

    stack: bool = False
    """Train a fresh adapter on top of those of `model.adapter`, which are added to the weights in
    memory and stay as they are. False trains the last of them further."""

    @model_validator(mode="after")
    def _say_whether(self) -> LoraSection:
        """Refuses settings of an adapter without `enabled`: all weights would be trained."""
        if "enabled" not in self.model_fields_set and self.model_fields_set:
            fix = "add enabled: true, or enabled: false to train all weights"
            message = "has no effect without model_optim.lora.enabled"
            keys = sorted(self.model_fields_set)
            raise refuse([Refusal(key, message, fix, ("enabled",)) for key in keys])
        return self


class ModelOptimSection(Section):
    """Memory and speed of the model itself."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: far less memory, about a third more time. Only
    training."""

    lora: LoraSection = Field(default_factory=LoraSection)
    """Low-rank adapter training."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the weights; `auto` takes that of the checkpoint where the device has it."""

    quantization: Text | None = None
    """Weight quantization that the family knows, such as `fp8`; null for none."""

    compile: bool = False
    """Compile the model when it loads: a slower start, faster requests."""

    attention: Text = "auto"
    """Attention implementation that the family knows, such as `sdpa` or `xformers`; `auto` lets
    the family choose."""


def _read_gpus(value: Any) -> Any:
    """Checks `gpus`; a whole number written as a float becomes an int."""
    value = read_scientific(value)
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problem = f"must be auto, a fraction below 1 or a whole number, not {show_value(value)}"
        raise refuse([Refusal("", problem, "write 0.25, 1 or auto")])
    if value < 0:
        problem = f"must be at least 0, not {value!r}"
        raise refuse([Refusal("", problem, "write 0 for a replica on CPU")])
    if not math.isfinite(value):
        problem = f"must be a finite number, not {value!r}"
        raise refuse([Refusal("", problem, "write 0.25, 1 or auto")])
    if value == int(value):
        return int(value)
    if value > 1:
        problem = f"{value!r} is neither a fraction below 1 nor a whole number"
        fix = f"several GPUs are taken whole: write {math.ceil(value)}"
        raise refuse([Refusal("", problem, fix)])
    return value


Gpus = Annotated[
    int | float | Literal["auto"],
    BeforeValidator(_read_gpus),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "auto"},
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "integer", "minimum": 0},
            ]
        }
    ),
]


LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([a-z0-9.-]{{1,253}}/)?{LABEL}$")]
LabelSelector = Annotated[str, Field(pattern=rf"^(!?{LABEL}|!?in\({LABEL}(, ?{LABEL})*\))$")]
"""What Ray accepts of a label's key and of a condition on its value: Kubernetes' rules."""


class HardwareSection(Section):
    """What one replica takes of the cluster."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model computes; `auto` follows `gpus`."""

    gpus: Gpus = "auto"
    """GPUs per replica: 0 for CPU, a fraction such as 0.25 to share one GPU between replicas, or a
    whole number, which makes one engine of several GPUs where the family can. `auto` is 0 or 1 by
    `TRUTHGPT_ACCELERATOR=cpu|gpu`, else by what the cluster has. More gives the model more memory
    and leaves room for fewer replicas."""

    cpus: NonNegativeNumber = 1
    """CPU cores that Ray reserves per replica; a fraction is allowed. A model on CPU computes with
    as many threads (at least one). More makes it faster and leaves room for fewer replicas."""

    accelerator_type: Text | None = None
    """GPU model that the node must have, in Ray's words, such as `A100` or `H100`. Null takes
    any; without `gpus` it means nothing."""

    label_selector: dict[LabelKey, LabelSelector] = Field(default_factory=dict)
    """Labels that the node must have, such as `zone: eu-1`: a value, `!value` for any other,
    `in(a, b)` for one of several or `!in(a, b)` for none of them. Labels come from `ray start
    --labels` or the Kubernetes manifest; unlike `accelerator_type`, one can make KubeRay start a
    node of a group that has none."""

    span_nodes: bool = False
    """Let the GPUs of one engine lie on several nodes, for a model that no node can hold. They talk
    over the network in every layer, so combine it with the engine's `pipeline_parallel_size`."""

    @model_validator(mode="after")
    def _check_device(self) -> HardwareSection:
        gpus = self.gpus
        found = []
        if self.device == "cpu" and gpus not in ("auto", 0):
            message = f"cpu contradicts gpus: {gpus}"
            found.append(Refusal("device", message, "remove one of them", ("gpus",)))
        if self.device == "cuda" and gpus == 0:
            message = "cuda contradicts gpus: 0"
            found.append(Refusal("device", message, "remove one of them", ("gpus",)))
        if self.accelerator_type and self.device == "cpu":
            message = f"{self.accelerator_type} is a GPU, which contradicts device: cpu"
            found.append(Refusal("accelerator_type", message, "remove one of them", ("device",)))
        if self.span_nodes and (gpus == "auto" or gpus <= 1):
            message = f"has no effect with gpus: {gpus}, which is one node's"
            found.append(Refusal("span_nodes", message, "remove it, or raise gpus", ("gpus",)))
        if found:
            raise refuse(found)
        return self
