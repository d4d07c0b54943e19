"""Downloads the weights that a Serve file names into the hub's cache, and what belongs to them.

Run by the prefetch Job, with the product's own reading of the files; starts no model. Of a
repository only what is loaded is taken. What fails is named at the end, and stops nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from truthgpt_serve.config import load_model_args
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.config.paths import must_be_local

MODEL_IMPORTS = ("truthgpt_serve.app:model", "truthgpt_serve.app.model")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
NEVER_LOADED = (".msgpack", ".h5", ".ot", ".tflite", ".mlmodel", ".png", ".jpg", ".gif", ".mp4")
OTHER_FORMATS = ("original", "openvino", "coreml", "onnx")
"""Folders with the same weights for other programs."""
VARIANT = re.compile(r"\.(fp16|bf16|non_ema|fp8|int8)\b")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a model's configuration that names a model, or several.

    Attributes:
        path: Where it stands; `*` is every entry of a list or mapping.
        revision: Where the revision of it stands.
        weights: Its weights are loaded too, not only configuration and tokenizer.
        words: Values that name no model.
    """

    path: str
    revision: str | None = None
    weights: bool = True
    words: tuple[str, ...] = ()


_ENGINE = "serving.engine"
KEYS = (
    Key("model.name_or_path", "model.revision"),
    Key("model.adapter.*"),
    Key("serving.adapters.*.path"),
    Key(f"{_ENGINE}.vae"),
    Key(f"{_ENGINE}.controlnet"),
    Key(f"{_ENGINE}.textual_inversion.*"),
    Key(f"{_ENGINE}.tokenizer", f"{_ENGINE}.tokenizer_revision", weights=False),
    Key(f"{_ENGINE}.hf_config_path", weights=False),
    Key(f"{_ENGINE}.generation_config", weights=False, words=("auto", "vllm")),
    Key(f"{_ENGINE}.speculative_config.model", f"{_ENGINE}.speculative_config.revision"),
    Key(f"{_ENGINE}.spec_model"),
    Key(f"{_ENGINE}.default_mm_loras.*"),
)
"""All that serving loads. tests/unit/k8s/test_prefetch.py holds them against the schemas: a new key
of a section or of a family has to be here or there."""
NO_MODEL = ("ngram", "ngram_gpu", "suffix", "custom_class")
"""Methods of drafting tokens that load no model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """One repository of the hub, and what is taken of it.

    Attributes:
        repository: Its name.
        revision: Branch, tag or commit; None is its default branch.
        weights: Take the weights too, not only configuration and tokenizer.
        family: The family that loads it, which says what formats it reads.
        variant: The variant of the weight files that is loaded.
        mistral: Take Mistral's own form of weights instead of the usual one.
    """

    repository: str
    revision: str | None = None
    weights: bool = True
    family: str = ""
    variant: str | None = None
    mistral: bool = False


def hub_weights(serve_file: dict[str, Any]) -> tuple[list[Weights], list[str]]:
    """Returns what the models of a Serve file load from the hub, each once, and their faults."""
    found: list[Weights] = []
    failed: list[str] = []
    for application in serve_file.get("applications") or []:
        if application.get("import_path") not in MODEL_IMPORTS:
            continue
        name = str(application.get("name"))
        try:
            config = load_model_args(application.get("args") or {}, place=name)
        except Exception as error:
            failed.append(str(error))  # which begins with the name
        else:
            found += [each for each in _of_model(config) if _is_on_the_hub(each.repository)]
    return list(dict.fromkeys(found)), failed


def _of_model(config: ModelConfig) -> Iterator[Weights]:
    cfg = config.to_cfg()
    engine = cfg["serving"]["engine"] = _with_draft(config.serving.engine)
    mistral = "mistral" in (engine.get("load_format"), engine.get("config_format"))
    for key in KEYS:
        options: dict[str, Any] = {"family": config.family} if key.weights else {"weights": False}
        if key.path == "model.name_or_path":
            options |= {"variant": engine.get("variant"), "mistral": mistral}
        revision = next(_values(cfg, key.revision), None) if key.revision else None
        for name in _values(cfg, key.path):
            if isinstance(name, str) and name not in key.words:
                yield Weights(name, revision, **options)


def _with_draft(engine: dict[str, Any]) -> dict[str, Any]:
    """Returns the engine's settings with `speculative_config` as a mapping, of a model or none."""
    draft = engine.get("speculative_config") or {}
    draft = json.loads(draft) if isinstance(draft, str) else draft
    draft = {} if draft.get("method") in NO_MODEL else draft
    name = None if engine.get("spec_method") in NO_MODEL else engine.get("spec_model")
    return {**engine, "speculative_config": draft, "spec_model": name}


def _values(data: Any, path: str) -> Iterator[Any]:
    """Yields what lies at a dotted path."""
    first, _, rest = path.partition(".")
    if first == "*":
        found = list(data.values()) if isinstance(data, dict) else list(data)
    else:
        found = [data[first]] if data.get(first) is not None else []
    for value in found:
        if rest:
            yield from _values(value, rest)
        else:
            yield value


def _is_on_the_hub(name: str) -> bool:
    # Where a local path exists, reading the file has made it absolute; a remote model has a URL.
    is_name = HUB_NAME.fullmatch(name) is not None
    return is_name and not must_be_local(name) and not Path(name).exists()


def loaded_files(files: Iterable[str], wanted: Weights) -> list[str]:
    """Returns the files of a repository that loading takes, in their order.

    Left out are forms of the same weights that the family does not read: of other programs, pickles
    where there are safetensors, single files beside a pipeline's folders, and other variants.
    """
    there = list(files)
    safe = {str(PurePosixPath(name).parent) for name in there if name.endswith(".safetensors")}
    is_pipeline = "model_index.json" in there
    usual = any(re.fullmatch(r"model[^/]*\.safetensors", name) for name in there)
    reads_onnx = wanted.family == "onnxruntime"
    kept = []
    for name in there:
        path = PurePosixPath(name)
        folder, is_weight = str(path.parent), path.suffix in WEIGHTS
        is_own = path.name.startswith("consolidated")
        left_out = (
            path.suffix in NEVER_LOADED
            or (path.parts[0] in OTHER_FORMATS and not reads_onnx)
            or (path.suffix in (".onnx", ".onnx_data") and not reads_onnx)
            or path.suffix == ".gguf"
            or (is_weight and not wanted.weights)
            or (is_weight and path.suffix != ".safetensors" and folder in safe)
            or (is_weight and is_pipeline and folder == ".")
            or (is_weight and usual and folder == "." and is_own != wanted.mistral)
        )
        if not left_out:
            kept.append(name)
    return _of_variant(kept, wanted.variant)


def _of_variant(files: list[str], variant: str | None) -> list[str]:
    mark = f".{variant}." if variant else None
    if mark and any(mark in name for name in files):
        with_variant = {str(PurePosixPath(name).parent) for name in files if mark in name}
        return [
            name
            for name in files
            if PurePosixPath(name).suffix not in WEIGHTS
            or mark in name
            or str(PurePosixPath(name).parent) not in with_variant
        ]
    plain = {
        str(PurePosixPath(name).parent)
        for name in files
        if PurePosixPath(name).suffix in WEIGHTS and not VARIANT.search(name)
    }
    return [
        name
        for name in files
        if not VARIANT.search(name) or str(PurePosixPath(name).parent) not in plain
    ]


def download(wanted: Weights) -> str:
    """Returns the folder of the cache where a repository's files now are."""
    from huggingface_hub import HfApi, snapshot_download

    files = HfApi().list_repo_files(wanted.repository, revision=wanted.revision)
    chosen = [re.sub(r"([\[*?])", r"[\1]", name) for name in loaded_files(files, wanted)]
    return snapshot_download(
        wanted.repository, revision=wanted.revision, allow_patterns=chosen, max_workers=4
    )


def main() -> None:
    """Command line: `prefetch.py SERVE_FILE`."""
    serve_file = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    wanted, failed = hub_weights(serve_file)
    print(f"{len(wanted)} repositories to download", flush=True)
    for weights in wanted:
        try:
            print(f"{weights.repository}: {download(weights)}", flush=True)
        except Exception as error:  # a gated or misspelled one is no reason to leave out the rest
            failed.append(f"{weights.repository}: {type(error).__name__}: {error}")
    if failed:
        sys.exit("\n".join([f"{len(failed)} failed, the rest is there:", *failed]))


if __name__ == "__main__":
    main()
