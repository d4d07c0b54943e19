"""How a model's folder says its embeddings are made: pooling, dense layers, normalization, prompts.

Knows the files of a sentence-transformers model (`modules.json` and what it names); computes
nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.loading import Source
from truthgpt_serve.errors import bad_setting

PLACE = "model.name_or_path"
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of `1_Pooling/config.json`, in the order in which several are put together."""
DECODERS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class EmbeddingLayout:
    """What becomes of the last hidden states.

    Attributes:
        pooling: Ways of pooling whose results are put together.
        dense: Folders of dense layers behind it, in order.
        normalize: Whether the vectors get length 1.
        prompt: Text in front of every text.
        max_tokens: Tokens that the model was trained to take, or None.
        lower_case: Whether texts are made lower case.
        source: Where the pooling comes from, for the log.
    """

    pooling: tuple[str, ...]
    dense: tuple[str, ...] = ()
    normalize: bool = True
    prompt: str = ""
    max_tokens: int | None = None
    lower_case: bool = False
    source: str = "the default"


def read_layout(source: Source, config: Any, settings: TransformersSettings) -> EmbeddingLayout:
    """Returns how embeddings are made: by the settings, else by the model's files, else usual.

    Raises:
        ConfigError: The files name a module that this family does not have.
    """
    modules = read_json(source, "modules.json")
    names = getattr(config, "architectures", None) or [""]
    decoder = any(name.endswith(DECODERS) for name in names)
    layout = EmbeddingLayout(("lasttoken",) if decoder else ("mean",))
    if modules is not None:
        layout = _read_modules(source, modules, layout)
    if settings.pooling is not None:
        layout = replace(layout, pooling=(settings.pooling,), source="serving.engine.pooling")
    if settings.normalize is not None:
        layout = replace(layout, normalize=settings.normalize)
    if settings.embedding_prompt is not None:
        layout = replace(layout, prompt=settings.embedding_prompt)
    return layout


def _read_modules(source: Source, modules: Any, layout: EmbeddingLayout) -> EmbeddingLayout:
    layout = replace(layout, normalize=False)
    for module in modules:
        kind, path = str(module["type"]).rpartition(".")[2], str(module["path"])
        if kind == "Transformer":
            found = read_json(source, _below(path, "sentence_bert_config.json")) or {}
            layout = replace(
                layout,
                max_tokens=found.get("max_seq_length"),
                lower_case=bool(found.get("do_lower_case")),
            )
        elif kind == "Pooling":
            file = _below(path, "config.json")
            layout = replace(layout, pooling=_pooling(source, file), source=file)
        elif kind == "Dense":
            layout = replace(layout, dense=(*layout.dense, path))
        elif kind == "Normalize":
            layout = replace(layout, normalize=True)
        elif kind != "Dropout":  # which does nothing to a model that is not trained
            message = f"modules.json names a module {module['type']}, which this family lacks"
            raise bad_setting(PLACE, message, "use another model, or a class of your own")
    whole = read_json(source, "config_sentence_transformers.json") or {}
    prompt = (whole.get("prompts") or {}).get(whole.get("default_prompt_name") or "", "")
    return replace(layout, prompt=prompt)


def _pooling(source: Source, file: str) -> tuple[str, ...]:
    found = read_json(source, file) or {}
    named = found.get("pooling_mode")
    modes = [named] if isinstance(named, str) else named
    if not isinstance(modes, list):
        modes = [mode for key, mode in POOLING_KEYS.items() if found.get(key)]
    unknown = [mode for mode in modes if mode not in POOLING_KEYS.values()]
    if unknown or not modes:
        message = f"{file} names {unknown or 'no pooling'}"
        fix = f"set serving.engine.pooling: one of {', '.join(POOLING_KEYS.values())}"
        raise bad_setting(PLACE, message, fix)
    return tuple(modes)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def find_file(source: Source, name: str) -> Path | None:
    """Returns the local path of a file of the model, after downloading a hub model's; or None."""
    folder = Path(source.name_or_path)
    if folder.is_dir():
        path = folder / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source.name_or_path, name, revision=source.revision))
    except EntryNotFoundError:
        return None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        message = f"{name} of {source.name_or_path!r} cannot be read: {error}"
        raise bad_setting(PLACE, message, "check the connection to the hub") from error


def read_json(source: Source, name: str) -> Any:
    """Returns a JSON file of the model, or None when it has none of this name.

    Raises:
        ConfigError: The file is damaged, or the hub cannot be reached.
    """
    path = find_file(source, name)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise bad_setting(PLACE, f"{path} is not valid JSON: {error}") from error
