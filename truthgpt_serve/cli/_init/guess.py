"""What a model is, by its files, by the files in the hub's cache, or by what the hub says of it."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

HUB_TIMEOUT_S = 3.0
MAX_ANSWER_BYTES = 4 << 20
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)
_SPEECH = "automatic-speech-recognition"
_BY_PIPELINE: dict[str, tuple[str, str, str | None]] = {
    "text-generation": ("text-generation", "vllm", None),
    "image-text-to-text": ("text-generation", "vllm", None),
    "text-to-image": ("image-generation", "hf-diffusers", None),
    "image-to-image": ("image-generation", "hf-diffusers", None),
    "feature-extraction": ("embedding", "hf-transformers", None),
    "sentence-similarity": ("embedding", "hf-transformers", None),
    _SPEECH: ("custom", "hf-transformers", _SPEECH),
}
"""Task, family and transformers' pipeline, by the hub's tag."""
_BY_ENDING: tuple[tuple[str, str], ...] = (
    ("ForCausalLM", "text-generation"),
    ("LMHeadModel", "text-generation"),
    ("ForSpeechSeq2Seq", _SPEECH),
    ("ForCTC", _SPEECH),
    ("ForSequenceClassification", "text-classification"),
    ("ForImageClassification", "image-classification"),
    ("ForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "question-answering"),
    ("ForMaskedLM", "feature-extraction"),
    ("Model", "feature-extraction"),
)
"""The hub's tag by the end of an architecture's name."""
_PIPELINES = ("text-classification", "image-classification", "token-classification")


class GuessError(Exception):
    """It cannot be told what a model is, or it is none; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Guess:
    """What a model seems to be.

    Attributes:
        name_or_path: For `model.name_or_path`.
        task: Its task, or None where nothing says it.
        family: The family that runs it, or None.
        engine: Settings of `serving.engine`.
        adapters: Name and path of each adapter.
        why: What says so.
    """

    name_or_path: str
    task: str | None = None
    family: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    adapters: tuple[tuple[str, str], ...] = ()
    why: str = ""


def guess(source: str, name: str, environ: Mapping[str, str] = os.environ) -> Guess:
    """Returns what a model is.

    Args:
        source: A folder, a file, a name in the hub, or the address of another server.
        name: How the model will be called.
        environ: The environment, which says where the hub and its cache are.

    Raises:
        GuessError: It is no model, or one that nothing here can serve.
    """
    if source.startswith(("http://", "https://")):
        engine = {"model": name}
        why = "it is the address of another server"
        return Guess(source, "text-generation", "remote", engine, why=why)
    from truthgpt_serve.config.paths import expand, must_be_local

    path = expand(source)
    if path.exists():
        return _of_files(path, _local_name(path), name)
    if must_be_local(source) or not _HUB_NAME.fullmatch(source):
        raise GuessError(
            f"{source} is neither a folder or file here nor the name of a model in the hub"
        )
    return _of_hub(source, name, environ)


def _local_name(path: Path) -> str:
    """Returns a path as it means the same wherever the service starts."""
    from truthgpt_serve.config.paths import config_dir

    whole = Path(os.path.abspath(path))
    home = config_dir().absolute().parent
    return f"./{whole.relative_to(home)}" if whole.is_relative_to(home) else str(whole)


def _of_files(path: Path, shown: str, name: str) -> Guess:
    if path.is_file():
        if path.suffix == ".onnx":
            return Guess(shown, "tensor", "onnxruntime", why="it is an ONNX file")
        if path.suffix == ".gguf":
            raise GuessError(
                f"{shown} is a GGUF file: name the folder of the whole model; for images, "
                "model_optim.quantization: gguf takes its weights (docs/images.md)"
            )
        raise GuessError(f"{shown} is not a model: name its folder, or an .onnx file")
    if (adapter := _read(path / "adapter_config.json")) is not None:
        return _of_adapter(adapter, shown, name)
    if (index := _read(path / "model_index.json")) is not None:
        kind = index.get("_class_name", "a pipeline")
        why = f"model_index.json says {kind}"
        return Guess(shown, "image-generation", "hf-diffusers", why=why)
    if (config := _read(path / "config.json")) is not None:
        found = _of_config(config, shown, "config.json")
        return _of_onnx_text(path, found) if found.task == "text-generation" else found
    if any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx")):
        return Guess(shown, "tensor", "onnxruntime", why="it has an .onnx file")
    if any(path.glob("*.gguf")):
        raise GuessError(f"{shown} has GGUF files but no config.json: name a folder with both")
    raise GuessError(
        f"{shown} has none of config.json, model_index.json, adapter_config.json and *.onnx: "
        "name the folder of a model, or give --task and --family"
    )


def _of_adapter(adapter: Mapping[str, Any], shown: str, name: str) -> Guess:
    from truthgpt_serve.config.paths import expand

    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise GuessError(
            f"{shown} is an adapter that does not name its model: use the model for --from, and "
            "write the adapter under serving.adapters"
        )
    return Guess(
        _local_name(expand(base)) if expand(base).exists() else base,
        "text-generation",
        "vllm",
        adapters=((f"{name}-adapter", shown),),
        why=f"adapter_config.json says: an adapter of {base}",
    )


def _of_config(config: Mapping[str, Any], shown: str, where: str) -> Guess:
    architectures = config.get("architectures")
    kinds = [str(kind) for kind in architectures] if isinstance(architectures, list) else []
    if not kinds:
        return Guess(shown, why=f"{where} names no architecture")
    why = f"{where} says {kinds[0]}"
    if kinds[0].startswith("Whisper"):
        return _of_pipeline(shown, _SPEECH, why)
    if kinds[0].endswith("ForConditionalGeneration") and "vision_config" in config:
        return _of_pipeline(shown, "image-text-to-text", why)
    for ending, tag in _BY_ENDING:
        if kinds[0].endswith(ending):
            return _of_pipeline(shown, tag, why)
    return Guess(shown, why=why)


def _of_onnx_text(path: Path, found: Guess) -> Guess:
    """Returns the guess for a text model whose only weights are a graph, as `export` writes it."""
    if not (path / "model.onnx").is_file() or any(path.glob("*.safetensors")):
        return found
    why = f"{found.why}, and its weights are model.onnx"
    return replace(found, family="onnxruntime", engine={}, why=why)


def _of_pipeline(shown: str, tag: str, why: str) -> Guess:
    if tag in _PIPELINES or tag == "question-answering":
        return Guess(shown, "custom", "hf-transformers", {"pipeline_task": tag}, why=why)
    task, family, pipeline = _BY_PIPELINE.get(tag, (None, None, None))
    return Guess(shown, task, family, {"pipeline_task": pipeline} if pipeline else {}, why=why)


def _of_hub(source: str, name: str, environ: Mapping[str, str]) -> Guess:
    from truthgpt_serve.doctor.service import cache_folder, is_offline

    snapshots = cache_folder(environ) / f"models--{source.replace('/', '--')}" / "snapshots"
    for snapshot in sorted(snapshots.iterdir()) if snapshots.is_dir() else ():
        try:
            found = _of_files(snapshot, source, name)
        except GuessError:
            continue
        return found
    if is_offline(environ):
        return Guess(source, why="the hub is switched off (HF_HUB_OFFLINE)")
    return _ask_hub(source, name, environ)


def _ask_hub(source: str, name: str, environ: Mapping[str, str]) -> Guess:
    hub = (environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{hub}/api/models/{quote(source)}")
    if token := environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:
            value = json.loads(answer.read(MAX_ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        if error.code in (401, 404):
            raise GuessError(
                f"the hub has no model {source!r} that you may see: check the name, or set HF_TOKEN"
            ) from error
        return Guess(source, why=f"the hub answered with status {error.code}")
    except (OSError, HTTPException, ValueError) as error:
        return Guess(source, why=f"the hub does not answer ({type(error).__name__})")
    if not isinstance(value, dict):
        return Guess(source, why="the hub's answer cannot be read")
    return _of_card(value, source)


def _of_card(card: Mapping[str, Any], source: str) -> Guess:
    tag, library = card.get("pipeline_tag"), card.get("library_name")
    if library == "diffusers":
        return Guess(source, "image-generation", "hf-diffusers", why="the hub says diffusers")
    if isinstance(tag, str) and (tag in _BY_PIPELINE or tag in _PIPELINES):
        return _of_pipeline(source, tag, f"the hub says {tag}")
    config = card.get("config")
    return _of_config(config if isinstance(config, dict) else {}, source, "the hub")


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the object in a JSON file; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
