"""The transformers family's entry in the registry, its settings and the checks of a configuration.

Imports neither torch nor transformers, so a Serve file is validated without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from pydantic import model_validator

from truthgpt_serve.config.base import Count, Refusal, Seconds, Section, refuse
from truthgpt_serve.config.paths import expand
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.device import find_kernel_faults
from truthgpt_serve.errors import Fault
from truthgpt_serve.model_files import has_tokenizer

PipelineTask = Literal[
    "audio-classification",
    "automatic-speech-recognition",
    "depth-estimation",
    "fill-mask",
    "image-classification",
    "image-feature-extraction",
    "object-detection",
    "text-classification",
    "token-classification",
    "zero-shot-classification",
    "zero-shot-image-classification",
]
PIPELINE_TASKS: tuple[str, ...] = get_args(PipelineTask)
"""Values of `serving.engine.pipeline_task`: transformers' pipelines whose inputs and outputs have a
form in JSON."""

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
GPU_ATTENTION = frozenset({"flash_attention_2", "flash_attention_3"})
QUANTIZATION = {
    "bitsandbytes-8bit": "bitsandbytes",
    "bitsandbytes-4bit": "bitsandbytes",
    "torchao-int8": "torchao",
}
"""Values of `model_optim.quantization`, and the package that each needs."""
GPU_QUANTIZATION = frozenset({"bitsandbytes-8bit", "bitsandbytes-4bit"})

Pooling = Literal["mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

DEFAULT_ROWS = 32
"""Sequences that decode together when `serving.max_ongoing_requests` does not say."""
DEFAULT_EMBEDDING_REQUESTS = 256
DEFAULT_PIPELINE_REQUESTS = 16


class TransformersSettings(Section):
    """What `serving.engine` may say for `family: hf-transformers`."""

    max_model_len: Count | None = None
    """Tokens of prompt and answer together, or of a text to embed; null takes what the model was
    made for. More takes more memory for each request."""

    max_new_tokens: Count | None = None
    """Most tokens of one answer that a request may ask for; null leaves it to `max_model_len`. More
    lets one request take longer."""

    default_max_new_tokens: Count = 256
    """Tokens of an answer when the request does not say; never more than `max_new_tokens`."""

    use_cache: bool = True
    """Keep keys and values of earlier tokens. Without it every token computes the whole text again:
    only for comparisons."""

    batching: Literal["auto", "continuous", "padded"] = "auto"
    """How texts share a forward pass. `continuous` lets requests join and leave between two tokens;
    `padded` runs a batch to its end. `auto` is `continuous` where a trial at start gives the
    model's own logits, else `padded`."""

    max_rows: Count | None = None
    """Most sequences in one forward pass; null takes `serving.max_ongoing_requests`, or 32. More
    raises throughput until memory ends."""

    max_batch_tokens: Count | None = None
    """Most tokens in one forward pass of `continuous` batching, or of embeddings, padding included;
    null means 512 on a CPU and 8192 on a GPU. A long prompt takes several. More is faster for long
    prompts and takes more memory."""

    kv_cache_bytes: Count | None = None
    """Memory in bytes for keys and values of `continuous` batching. Null means what `max_rows`
    sequences of `max_model_len` need, at most 1 GiB on a CPU, or 80% of what the weights leave of
    the GPU's share. More holds more and longer requests at the same time."""

    prefix_cache: bool = True
    """Reuse keys and values of equal beginnings of prompts, in `continuous` batching."""

    pooling: Pooling | None = None
    """How the vectors of a text's tokens become one. Null takes what the model's
    `1_Pooling/config.json` says, else `mean`; decoders that say nothing take `lasttoken`."""

    normalize: bool | None = None
    """Scale embeddings to length 1. Null takes what the model's `modules.json` says, else true."""

    embedding_prompt: str | None = None
    """Text put in front of every text that is embedded; null takes the model's own default."""

    pipeline_task: PipelineTask | None = None
    """Transformers pipeline of a model with `task: custom`, such as `image-classification`."""

    max_audio_s: Seconds = 1800
    """Longest recording in seconds that speech recognition takes. More lets one request take
    longer, and memory: 64 kB for a second."""

    compile_mode: CompileMode = "max-autotune-no-cudagraphs"
    """How hard `model_optim.compile` tries: `default` starts sooner, `max-autotune` measures more
    kernels."""

    @model_validator(mode="after")
    def _check_values(self) -> TransformersSettings:
        if self.batching == "continuous" and not self.use_cache:
            message = "continuous needs the cache of keys and values"
            raise refuse([Refusal("batching", message, "write padded", ("use_cache",))])
        return self


def check_config(cfg: Mapping[str, Any]) -> list[Fault]:
    """Returns the faults between sections; their places are dotted paths."""
    checks: tuple[Callable[[Mapping[str, Any]], list[Fault]], ...] = (
        _check_task,
        _check_hardware,
        _check_attention,
        _check_quantization,
        _check_tokenizer,
    )
    return [fault for check in checks for fault in check(cfg)]


def _check_task(cfg: Mapping[str, Any]) -> list[Fault]:
    given = cfg["serving"]["engine"].get("pipeline_task")
    if cfg["task"] == "custom" and given is None:
        message = "task: custom needs the transformers pipeline that runs the model"
        return [Fault("serving.engine", message, "set pipeline_task, such as image-classification")]
    if cfg["task"] != "custom" and given is not None:
        message = f"{given} has no effect with task: {cfg['task']}"
        return [Fault("serving.engine.pipeline_task", message, "write task: custom, or remove it")]
    return []


def _check_hardware(cfg: Mapping[str, Any]) -> list[Fault]:
    gpus = cfg["hardware"]["gpus"]
    if isinstance(gpus, (int, float)) and gpus > 1:
        message = f"{gpus} is more than one: this family uses one GPU"
        fix = "write 1 and raise serving.num_replicas, or use family vllm"
        return [Fault("hardware.gpus", message, fix)]
    return []


def _check_attention(cfg: Mapping[str, Any]) -> list[Fault]:
    name, known = cfg["model_optim"]["attention"], (*ATTENTION, "auto")
    fix = "write auto or sdpa"
    faults = find_kernel_faults(cfg, "attention", known, GPU_ATTENTION, fix)
    if not faults and name in GPU_ATTENTION and cfg["model_optim"]["dtype"] == "float32":
        message = f"{name} computes in bfloat16 or float16, not in float32"
        return [Fault("model_optim.attention", message, "write sdpa, or another model_optim.dtype")]
    return faults


def _check_quantization(cfg: Mapping[str, Any]) -> list[Fault]:
    fix = "write torchao-int8, or null"
    return find_kernel_faults(cfg, "quantization", QUANTIZATION, GPU_QUANTIZATION, fix)


def _check_tokenizer(cfg: Mapping[str, Any]) -> list[Fault]:
    folder = expand(str(cfg["model"]["name_or_path"] or "no model"))
    reads_text = cfg["task"] in ("text-generation", "embedding")
    if not reads_text or not (folder / "config.json").is_file() or has_tokenizer(folder):
        return []
    fix = "put the tokenizer's files into it"
    return [Fault("model.name_or_path", f"{str(folder)!r} has no tokenizer", fix)]


def default_ongoing_requests(cfg: Mapping[str, Any]) -> int:
    """Returns how many requests one replica works on: as many as share a forward pass."""
    if cfg["task"] == "embedding":
        return DEFAULT_EMBEDDING_REQUESTS
    if cfg["task"] == "custom":
        return DEFAULT_PIPELINE_REQUESTS
    return int(cfg["serving"]["engine"].get("max_rows") or DEFAULT_ROWS)


_CLASSES = "deployments.hf_transformers.deployment"

FAMILY = FamilySpec(
    name="hf-transformers",
    class_path=f"{_CLASSES}:TextModel",
    class_paths={
        "embedding": f"{_CLASSES}:EmbeddingModel",
        "custom": f"{_CLASSES}:PipelineModel",
    },
    tasks=("text-generation", "embedding", "custom"),
    engine_config=TransformersSettings,
    adds_adapters=True,
    needs_weights=True,
    on_event_loop=True,
    max_ongoing_requests=default_ongoing_requests,
    check=check_config,
    doctor_path="deployments.hf_transformers.doctor:examine",
)
