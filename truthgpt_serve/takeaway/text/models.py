"""Loads text models with and without their adapters, and writes them as ordinary folders."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig, PeftModel
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.result import Result

CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""The class of transformers for peft's name of a task."""
HEADS = ("score.weight", "classifier.weight")
"""How the head of a classifier ends in an adapter's file; its rows are the labels."""
SIDE_FILES = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
"""What a model for embeddings has beside its weights, and the folders that `modules.json` names."""
PROBE_TOKENS = 16
TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""How much of the largest logit may be lost to rounding before a merge counts as wrong."""


def load_tokenizer(result: Result) -> Any:
    """Returns the tokenizer beside the adapter or model, else the base's; None where none is.

    Its chat template is with it.
    """
    places = [(str(result.folder), None), (result.base, result.revision)]
    for name, revision in places:
        if name is None:
            continue
        try:
            return AutoTokenizer.from_pretrained(name, revision=revision)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def load_config(name: str, revision: str | None) -> Any:
    """Returns a model's configuration.

    Raises:
        TakeawayError: There is none, or its weights are quantized.
    """
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        fix = "name the model with --base, or look at HF_HUB_OFFLINE"
        raise TakeawayError(f"{name}: cannot be loaded: {first_line(error)} ({fix})") from error
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        kind = settings.get("quant_method") if isinstance(settings, Mapping) else None
        raise TakeawayError(
            f"{name}: its weights are quantized ({kind or 'in a form of its own'}), and an adapter "
            "cannot be added to them without loss (name the same model in full precision with "
            "--base)"
        )
    return config


def load_merged(result: Result, dtype: str | None) -> tuple[Any, float | None]:
    """Returns the whole model of a result: as it is, or with its adapter merged.

    Args:
        result: An adapter of a text model, or a whole text model.
        dtype: Number format of the weights, `float32` for example; None: as they are stored.

    Returns:
        The model, and the largest difference of its logits to those of base and adapter; None for
        a whole model.

    Raises:
        TakeawayError: It cannot be loaded or merged.
    """
    if not result.is_adapter:
        config = load_config(str(result.folder), None)
        return _load(_class_of(config), str(result.folder), None, dtype, {}), None
    return _merge(_load_adapted(result, dtype))


def _class_of(config: Any) -> str:
    architecture = (getattr(config, "architectures", None) or ["ForCausalLM"])[0]
    if architecture.endswith("ForSequenceClassification"):
        return CLASSES["SEQ_CLS"]
    is_decoder = architecture.endswith(("ForCausalLM", "LMHeadModel"))
    return CLASSES["CAUSAL_LM" if is_decoder else "FEATURE_EXTRACTION"]


def _load_adapted(result: Result, dtype: str | None) -> Any:
    """Returns the base with the adapter beside its weights."""
    folder = str(result.folder)
    try:
        settings = PeftConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TakeawayError(f"{folder}: is no adapter of peft: {first_line(error)}") from error
    kind = settings.task_type or "CAUSAL_LM"
    if kind not in CLASSES:
        known = ", ".join(CLASSES)
        raise TakeawayError(f"{folder}: adapters for {kind} cannot be merged (only for {known})")
    base = str(result.base)
    load_config(base, result.revision)
    more = _labels_of(result.folder) if kind == "SEQ_CLS" else {}
    model = _load(CLASSES[kind], base, result.revision, dtype, more)
    try:
        with warnings.catch_warnings():
            # Whether merging shared embeddings goes well is checked by the logits.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            return PeftModel.from_pretrained(model, folder).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = f"does not fit the model {base}: {first_line(error)}"
        raise TakeawayError(f"{folder}: {message} (name the right one with --base)") from error


def _load(kind: str, name: str, revision: str | None, dtype: str | None, more: Any) -> Any:
    try:
        return (
            getattr(transformers, kind)
            .from_pretrained(name, revision=revision, dtype=dtype or "auto", **more)
            .eval()
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise TakeawayError(f"{name}: cannot be loaded: {first_line(error)}") from error


def _labels_of(folder: Path) -> dict[str, int]:
    """Returns how many labels the head of an adapter has, where it has one."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return {}
    with safe_open(str(file), "np") as weights:
        for name in weights.keys():  # noqa: SIM118  no mapping
            if name.endswith(HEADS):
                return {"num_labels": int(weights.get_slice(name).get_shape()[0])}
    return {}


def _merge(model: Any) -> tuple[Any, float]:
    """Returns the base with the adapter in its weights, each layer's sum computed in float32."""
    before = _probe(model)
    try:
        for module in model.modules():
            if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
                dtype = module.get_base_layer().weight.dtype
                module.float()
                module.merge(safe_merge=True)
                module.to(dtype)
        with warnings.catch_warnings():
            # The layers are merged already, and embeddings that differ are untied: as intended.
            warnings.filterwarnings("ignore", message="All adapters are already merged")
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer")
            merged = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        raise TakeawayError(f"the adapter cannot be merged: {first_line(error)}") from error
    return merged, _compare(_probe(merged), before, merged.dtype)


def _probe(model: Any) -> torch.Tensor:
    """Returns the logits, or hidden states, of some tokens: `[1, tokens, size]` in float32."""
    size = min(PROBE_TOKENS, model.config.get_text_config().vocab_size)
    with torch.no_grad():
        return model(input_ids=torch.arange(size)[None])[0].float()


def _compare(after: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> float:
    difference = float((after - before).abs().max())
    limit = TOLERANCES.get(dtype, 1.0) * max(1.0, float(before.abs().max()))
    if not difference <= limit:
        raise TakeawayError(
            f"the merged model differs from base and adapter by {difference:.3g} in a logit: this "
            "adapter cannot be merged into this model"
        )
    return difference


def write_model(model: Any, tokenizer: Any, folder: Path, max_shard: str, source: Result) -> None:
    """Writes an ordinary folder: weights, configurations, tokenizer and chat template.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
        folder: Where to.
        max_shard: Largest file of weights, such as `5GB`.
        source: What it was made from; a model for embeddings has more files there.
    """
    model.save_pretrained(str(folder), max_shard_size=max_shard)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    copy_side_files(source, folder)


def copy_side_files(source: Result, folder: Path) -> None:
    """Copies what a model for embeddings has beside its weights; of others there is nothing."""
    origin = source.folder if source.base is None else _snapshot(source)
    if origin is not None and (origin / SIDE_FILES[0]).is_file():
        modules = json.loads((origin / SIDE_FILES[0]).read_text(encoding="utf-8"))
        for name in (*SIDE_FILES, *(str(module.get("path", "")) for module in modules)):
            _copy(origin / name, folder / name)


def _snapshot(source: Result) -> Path | None:
    """Returns the folder with the base's files, of a hub model the one in the cache."""
    if Path(str(source.base)).is_dir():
        return Path(str(source.base))
    file = try_to_load_from_cache(str(source.base), SIDE_FILES[0], revision=source.revision)
    return Path(file).parent if isinstance(file, str) else None


def _copy(origin: Path, copy: Path) -> None:
    if copy.exists():
        return
    if origin.is_dir():
        shutil.copytree(origin, copy)
    elif origin.is_file():
        shutil.copyfile(origin, copy)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, else its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
