"""What lies beside a graph for texts: its tokenizer, generation settings and length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.onnx.config import OnnxSettings
from deployments.onnx.text.sampling import Sampling
from truthgpt_serve.errors import ConfigError, Fault

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
UNKNOWN_MODEL_LEN = 2048
NO_LIMIT = 1 << 20
"""Tokenizers without a length say a number above this."""


@dataclass(frozen=True, slots=True)
class TextInfo:
    """What a model says of itself.

    Attributes:
        tokenizer: Its tokenizer.
        end_ids: Tokens that end an answer.
        sampling: How its authors want tokens to be chosen; greedy unless they say otherwise.
        sampled: The same for a request that asks for sampling without saying how.
        max_model_len: Tokens of prompt and answer together.
    """

    tokenizer: Any
    end_ids: frozenset[int]
    sampling: Sampling
    sampled: Sampling
    max_model_len: int


def read_info(file: Path, settings: OnnxSettings) -> TextInfo:
    """Reads the folder of a graph, or the one above it, where exports put these files.

    Raises:
        ConfigError: There is no tokenizer.
    """
    folder = next((f for f in (file.parent, file.parent.parent) if _has_tokenizer(f)), None)
    if folder is None:
        fix = "copy tokenizer.json and tokenizer_config.json of the model beside it"
        raise ConfigError([Fault(str(file), "has no tokenizer beside it", fix)])
    tokenizer = _load_tokenizer(folder)
    own, config = _read(folder / "generation_config.json"), _read(folder / "config.json")
    end = own.get("eos_token_id", config.get("eos_token_id"))
    end = tokenizer.eos_token_id if end is None else end
    sampled = Sampling(
        temperature=own.get("temperature") or 1.0,
        top_k=(own.get("top_k") or 0) if own.get("do_sample") else 0,
        top_p=own.get("top_p") or 1.0,
        min_p=own.get("min_p") or 0.0,
        repetition_penalty=own.get("repetition_penalty") or 1.0,
        min_tokens=own.get("min_new_tokens") or 0,
    )
    greedy = Sampling(repetition_penalty=sampled.repetition_penalty, min_tokens=sampled.min_tokens)
    return TextInfo(
        tokenizer=tokenizer,
        end_ids=frozenset(end if isinstance(end, list) else [] if end is None else [end]),
        sampling=sampled if own.get("do_sample") else greedy,
        sampled=sampled,
        max_model_len=settings.max_model_len or _length(config, tokenizer),
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _load_tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder))
    except ImportError as error:
        fix = "pip install 'truthgpt-serve[onnx]'"
        raise ConfigError([Fault("task", f"texts need the package {error.name}", fix)]) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError([Fault(str(folder), f"its tokenizer cannot be read: {reason}")]) from (
            error
        )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError([Fault(str(file), f"cannot be read: {error}")]) from error
    return value if isinstance(value, dict) else {}


def _length(config: Mapping[str, Any], tokenizer: Any) -> int:
    text = config.get("text_config")
    for section in (text if isinstance(text, dict) else {}, config):
        for name in LENGTHS:
            if isinstance(value := section.get(name), int) and value > 0:
                return value
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if isinstance(length, int) and length < NO_LIMIT else UNKNOWN_MODEL_LEN
