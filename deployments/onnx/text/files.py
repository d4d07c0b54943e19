"""What lies beside a graph for texts: its tokenizer, generation settings and length."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.onnx.config import OnnxSettings
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.server.text.sampling import (
    LENGTHS,
    SamplingDefaults,
    find_length,
    read_defaults,
)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class TextInfo:
    """What a model says of itself.

    Attributes:
        tokenizer: Its tokenizer.
        defaults: How its authors want tokens to be chosen, and what ends an answer.
        max_model_len: Tokens of prompt and answer together.
    """

    tokenizer: Any
    defaults: SamplingDefaults
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
    return TextInfo(
        tokenizer=tokenizer,
        defaults=read_defaults(own, end),
        max_model_len=settings.max_model_len or find_length(_lengths(config), tokenizer),
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


def _lengths(config: Mapping[str, Any]) -> list[Any]:
    text = config.get("text_config")
    sections = (text if isinstance(text, dict) else {}, config)
    return [section.get(name) for section in sections for name in LENGTHS]
