"""Loads weights: device, number format, quantization, and the errors that name what is missing.

Code that a checkpoint brings is never run.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from deployments.hf_transformers.config import GPU_QUANTIZATION, QUANTIZATION
from truthgpt_serve import device
from truthgpt_serve.adapter_files import OTHER_BASE, base_of
from truthgpt_serve.device import choose_device, choose_dtype
from truthgpt_serve.errors import bad_setting

LOAD_ERRORS = (OSError, ValueError, ImportError, RuntimeError, TypeError, KeyError)
"""What `from_pretrained` raises for folders that are no model, or not one of this kind."""
NO_LIMIT = 10**6
"""Tokenizers without a limit of their own say a number far above any model's."""
PADDING_OFFSET_TYPES = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
"""Architectures whose positions begin behind the padding token's id: that many cannot be used."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights are and how they are to be loaded.

    Attributes:
        name_or_path: A hub name or a local folder.
        revision: Branch, tag or commit of a hub model.
        device: Where the model computes.
        dtype: The number format that the configuration names, `auto` for the checkpoint's.
        quantization: A key of `config.QUANTIZATION`, or None.
        adapters: Folders or hub names of adapters that are added to the weights.
    """

    name_or_path: str
    revision: str | None
    device: torch.device
    dtype: str
    quantization: str | None
    adapters: tuple[str, ...] = ()

    def options(self) -> dict[str, Any]:
        """Returns the arguments that every `from_pretrained` gets."""
        options: dict[str, Any] = {"trust_remote_code": False}
        if self.revision is not None:
            options["revision"] = self.revision
        return options


def read_source(cfg: Mapping[str, Any]) -> Source:
    """Reads where the weights are; on a CPU it sets the number of threads to `hardware.cpus`.

    Raises:
        ConfigError: A GPU is asked for and there is none, or the quantization cannot run here.
    """
    transformers.utils.logging.disable_progress_bar()
    where = choose_device(cfg["hardware"], torch)
    if where.type == "cpu":
        torch.set_num_threads(max(1, int(cfg["hardware"]["cpus"])))
    quantization = cfg["model_optim"]["quantization"]
    if quantization is not None:
        check_quantization(str(quantization))
    return Source(
        name_or_path=str(cfg["model"]["name_or_path"]),
        revision=cfg["model"]["revision"],
        device=where,
        dtype=str(cfg["model_optim"]["dtype"]),
        quantization=quantization,
        adapters=tuple(cfg["model"].get("adapter") or ()),
    )


def check_quantization(name: str) -> None:
    """Proves that this machine can run a quantization; see `truthgpt_serve.device`."""
    device.check_quantization(name, [QUANTIZATION[name]], GPU_QUANTIZATION, torch)


def _quantization_config(name: str, dtype: torch.dtype) -> Any:
    if name == "bitsandbytes-8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "bitsandbytes-4bit":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    kinds = importlib.import_module("torchao.quantization")
    return transformers.TorchAoConfig(kinds.Int8WeightOnlyConfig(version=2))


def quantization_options(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the arguments that quantize a model as it is loaded; none without quantization."""
    if source.quantization is None:
        return {}
    config = _quantization_config(source.quantization, dtype)
    return {"quantization_config": config, "device_map": {"": source.device}}


def load_config(source: Source) -> Any:
    """Returns the model's own configuration.

    Raises:
        ConfigError: There is no such model.
    """
    try:
        return transformers.AutoConfig.from_pretrained(source.name_or_path, **source.options())
    except LOAD_ERRORS as error:
        raise _not_loaded(source, "a transformers model", error) from error


def load_tokenizer(source: Source) -> Any:
    """Returns the model's tokenizer.

    Raises:
        ConfigError: It has none.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(source.name_or_path, **source.options())
    except LOAD_ERRORS as error:
        raise _not_loaded(source, "a tokenizer", error) from error


def load_model(auto_class: Any, source: Source, config: Any) -> Any:
    """Returns the model in its number format, on its device, ready to compute.

    Args:
        auto_class: Such as `transformers.AutoModelForCausalLM`.
        source: Where the weights are.
        config: What `load_config` returned.

    Raises:
        ConfigError: The weights are not of this kind, or the quantization does not take them.
    """
    dtype = choose_dtype(source.dtype, getattr(config, "dtype", None), source.device, torch)
    options: dict[str, Any] = {"dtype": dtype, **source.options()}
    options |= quantization_options(source, dtype)
    try:
        model = auto_class.from_pretrained(source.name_or_path, **options)
    except torch.OutOfMemoryError as error:
        message = f"the weights do not fit the GPU: {error}"
        raise bad_setting("hardware.gpus", message, "take a larger GPU, or quantize") from error
    except LOAD_ERRORS as error:
        raise _not_loaded(source, f"an {auto_class.__name__}", error) from error
    model = _add_adapters(model, source)
    if source.quantization is None:
        model.to(source.device)
    return model.eval()


def _add_adapters(model: Any, source: Source) -> Any:
    """Returns the model with its adapters in the weights, or beside them if those are quantized."""
    if source.quantization is not None and len(source.adapters) > 1:
        message = f"{len(source.adapters)} adapters are not added to quantized weights"
        fix = "write one, or make one model of them: truthgpt merge"
        raise bad_setting("model.adapter", message, fix)
    for path in source.adapters:
        try:
            peft = importlib.import_module("peft")
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "Found missing adapter keys")
                adapted = peft.PeftModel.from_pretrained(model, path)
        except (*LOAD_ERRORS, UserWarning) as error:
            trained = base_of(Path(path))
            own = f", trained for {trained}," if trained else ""
            reason = str(error).strip().partition("\n")[0]
            message = f"{path}{own} cannot be added to {source.name_or_path}: {reason}"
            raise bad_setting("model.adapter", message, OTHER_BASE) from error
        is_plain = source.quantization is None
        model = adapted.merge_and_unload() if is_plain else adapted.base_model.model
    return model


def _not_loaded(source: Source, kind: str, error: Exception) -> Exception:
    at = f" at revision {source.revision!r}" if source.revision else ""
    reason = str(error).strip().partition("\n")[0]
    message = f"{source.name_or_path!r}{at} cannot be loaded as {kind}: {reason}"
    return bad_setting("model.name_or_path", message)


def max_input_tokens(config: Any, tokenizer: Any) -> int | None:
    """Returns the most tokens that a model which only reads takes, or None where nothing says so.

    Args:
        config: Its configuration.
        tokenizer: Its tokenizer.
    """
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None)
    if length and text.model_type in PADDING_OFFSET_TYPES:
        length -= (tokenizer.pad_token_id or 0) + 1
    limits = [limit for limit in (length, tokenizer.model_max_length) if limit]
    found = min(map(int, limits), default=NO_LIMIT)
    return found if 0 < found < NO_LIMIT else None
