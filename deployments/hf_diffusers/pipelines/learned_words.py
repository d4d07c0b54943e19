"""Loads learned words (textual inversion) into the text encoders of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from deployments.hf_diffusers.checks import find_local
from truthgpt_serve.errors import bad_setting

FILES = {
    "learned_embeds.safetensors": "text_encoder",
    "learned_embeds_2.safetensors": "text_encoder_2",
}
"""Files of a folder, as the examples of Diffusers write them, with the encoder that each is for."""
KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""Tensors of one file for both encoders of SDXL; the word is the file's name."""


def load_words(pipeline: Any, names: Sequence[str]) -> None:
    """Adds the words to the pipeline's tokenizers and text encoders.

    Args:
        pipeline: The loaded pipeline.
        names: `serving.engine.textual_inversion`.

    Raises:
        ConfigError: A word cannot be loaded, or the pipeline takes none.
    """
    for index, name in enumerate(names):
        place = f"serving.engine.textual_inversion[{index}]"
        if not hasattr(pipeline, "load_textual_inversion"):
            message = f"{type(pipeline).__name__} takes no learned words"
            raise bad_setting(place, message, "remove it")
        try:
            _load(pipeline, find_local(name))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise bad_setting(place, f"{name!r} cannot be loaded: {error}") from error


def _load(pipeline: Any, name: str) -> None:
    path = Path(name)
    files = {encoder: path / file for file, encoder in FILES.items() if (path / file).is_file()}
    if path.is_dir() and not files:
        raise ValueError(f"the folder has none of {', '.join(FILES)}")
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError("only .safetensors files are read")
        tensors = load_file(path)
        if KEYS.keys() & tensors.keys():
            for key, encoder in KEYS.items():
                if key in tensors:
                    _add(pipeline, encoder, {path.stem: tensors[key]})
            return
        files = {"text_encoder": path}
    if not files:
        # Of the hub; weights that run code when they are read are not taken.
        pipeline.load_textual_inversion(name, use_safetensors=True)
    for encoder, file in files.items():
        _add(pipeline, encoder, load_file(file))


def _add(pipeline: Any, encoder: str, tensors: dict[str, Any]) -> None:
    module = getattr(pipeline, encoder, None)
    if module is None:
        raise ValueError(f"the pipeline has no {encoder}")
    width = module.get_input_embeddings().weight.shape[1]
    for word, rows in tensors.items():
        if rows.shape[-1] != width:
            raise ValueError(f"{word!r} has the width {rows.shape[-1]}, and {encoder} {width}")
    pipeline.load_textual_inversion(
        tensors,
        text_encoder=module,
        tokenizer=getattr(pipeline, encoder.replace("text_encoder", "tokenizer")),
    )
