"""From the vectors of tokens to one vector of a text, and the files that say so to the service.

The formulas and the files are those of sentence-transformers, which the family `hf-transformers`
reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from truthgpt_serve.training.errors import TrainingError

POOLINGS = ("mean", "cls", "lasttoken")
_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}
_DECODERS = ("ForCausalLM", "LMHeadModel")
_MODULES = ("Transformer", "Pooling", "Normalize")
_PROMPTS = "config_sentence_transformers.json"


def pool(pooling: str, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the vectors of texts, of length 1, `[texts, size]`.

    Args:
        pooling: One of `POOLINGS`.
        hidden: Vectors of tokens, `[texts, tokens, size]`.
        mask: 1 for each token that is no padding, `[texts, tokens]`.
    """
    rows = torch.arange(len(hidden), device=hidden.device)
    if pooling == "cls":
        found = hidden[rows, mask.argmax(dim=1)]
    elif pooling == "lasttoken":
        found = hidden[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        found = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(found, dim=-1)


def choose_pooling(cfg: Mapping[str, Any], config: Any) -> str:
    """Returns the pooling by the settings, else by the model's files, else the usual one.

    Raises:
        TrainingError: The model's files name what is not trained here.
    """
    if cfg["training"]["pooling"] is not None:
        return str(cfg["training"]["pooling"])
    modules = _read(cfg, "modules.json")
    if modules is not None:
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        unknown = [kind for kind in kinds if kind not in _MODULES]
        if unknown:
            message = f"the model has a module {unknown[0]}, which embedding does not train"
            raise TrainingError(f"{message} (set training.pooling to leave it out)")
        paths = [
            str(m["path"]) for m, kind in zip(modules, kinds, strict=True) if kind == "Pooling"
        ]
        return _pooling_of(_read(cfg, f"{paths[0]}/config.json") or {}) if paths else "mean"
    names = getattr(config, "architectures", None) or [""]
    return "lasttoken" if any(name.endswith(_DECODERS) for name in names) else "mean"


def _pooling_of(found: Mapping[str, Any]) -> str:
    modes = [mode for mode, key in _KEYS.items() if found.get(key)]
    if isinstance(found.get("pooling_mode"), str):
        modes = [found["pooling_mode"]]
    if len(modes) != 1 or modes[0] not in POOLINGS:
        message = "the model's 1_Pooling/config.json names a pooling that embedding does not train"
        raise TrainingError(f"{message} (set training.pooling: one of {', '.join(POOLINGS)})")
    return str(modes[0])


def _file(cfg: Mapping[str, Any], name: str) -> Path | None:
    found = cached_file(
        cfg["model"]["name_or_path"],
        name,
        revision=cfg["model"]["revision"],
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def _read(cfg: Mapping[str, Any], name: str) -> Any:
    file = _file(cfg, name)
    return None if file is None else json.loads(file.read_text(encoding="utf-8"))


def default_prompt(cfg: Mapping[str, Any]) -> str:
    """Returns the text that the model's files put in front of every text."""
    found = _read(cfg, _PROMPTS) or {}
    return str((found.get("prompts") or {}).get(found.get("default_prompt_name") or "", ""))


def lowers_case(cfg: Mapping[str, Any]) -> bool:
    """Returns whether the model's files say that texts are made lower case."""
    return bool((_read(cfg, "sentence_bert_config.json") or {}).get("do_lower_case"))


def write_layout(
    folder: Path, cfg: Mapping[str, Any], pooling: str, size: int, max_tokens: int
) -> None:
    """Writes the files beside a model that say how its vectors are made.

    Args:
        folder: The model's.
        cfg: The whole configuration.
        pooling: One of `POOLINGS`.
        size: Values of a vector.
        max_tokens: Tokens at which texts were cut.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    rows = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (path, kind) in enumerate(kinds)
    ]
    modes = {key: mode == pooling for mode, key in _KEYS.items()}
    _write(folder / "modules.json", rows)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": size, **modes})
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_tokens, "do_lower_case": lowers_case(cfg)},
    )
    if (prompts := _file(cfg, _PROMPTS)) is not None:
        shutil.copyfile(prompts, folder / _PROMPTS)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
