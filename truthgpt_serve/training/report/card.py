"""The model card of a result: what it was made of and how, for whoever finds the folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.config.paths import must_be_local
from truthgpt_serve.training.data.sources import names_of
from truthgpt_serve.training.report.page import Run, leaves_of, load_run
from truthgpt_serve.training.run_folder import MODEL, write_text_file
from truthgpt_serve.training.serving import is_adapter

FILE = "README.md"
MAX_TEXT = 300
"""Characters of one value."""
_SECTIONS = ("training", "model_optim", "data")
_ALWAYS = frozenset({"training.method", "training.learning_rate", "training.train_batch_size"})
_TAGS = {
    "text-generation": "text-generation",
    "embedding": "sentence-similarity",
    "custom": "text-classification",
    "image-generation": "text-to-image",
}
"""The hub's name of each task that can be trained."""


def write_card(run: Path, folder: Path | None = None, *, adapter: bool | None = None) -> Path:
    """Writes `README.md` into the folder of a result.

    Args:
        run: The run's folder.
        folder: The result's; by default the run's `model/`.
        adapter: Whether it is an adapter; by default as its files say.

    Raises:
        TrainingError: There is no run.
        OSError: The file cannot be written.
    """
    target = folder or run / MODEL
    is_part = is_adapter(target) if adapter is None else adapter
    text = create_card(load_run(run), is_part)
    write_text_file(target / FILE, text.encode("utf-8", "replace").decode())
    return target / FILE


def create_card(run: Run, adapter: bool) -> str:
    """Returns the card; whatever the run holds stands in it as text.

    Args:
        run: What is known of it.
        adapter: Whether the result needs its base.
    """
    config = run.record.get("config", {})
    base = _shown_name(config.get("model", {}).get("name_or_path"))
    method = config.get("training", {}).get("method", "")
    what = "An adapter for" if adapter else "A model trained from"
    parts = [
        f"---\n{_metadata(config, adapter)}\n---\n",
        f"# {' '.join(_plain(run.name).split())}\n",
        f"{what} {_code(base)}, made by `truthgpt train` with the method {_code(method)}.\n",
        "## Data\n",
        *_data(run.record),
        "## Settings\n",
        _table(("key", "value"), _settings(config)),
        "## Losses\n",
        _table(("", ""), _losses(run)),
        "## Versions\n",
        _table(("package", "version"), (run.record.get("versions") or {}).items()),
    ]
    return "\n".join(parts)


def _metadata(config: Mapping[str, Any], adapter: bool) -> str:
    """Returns the hub's metadata; the license is left out, because nobody has said it."""
    from huggingface_hub import ModelCardData

    task = config.get("task")
    base = config.get("model", {}).get("name_or_path")
    hub = [name for name in names_of(config.get("data", {}).get("dataset")) if _is_hub_name(name)]
    image = task == "image-generation"
    library = "diffusers" if image else "peft" if adapter else "transformers"
    data = ModelCardData(
        base_model=base if _is_hub_name(base) else None,
        datasets=hub or None,
        library_name=library,
        pipeline_tag=_TAGS.get(str(task)),
        tags=["truthgpt", *(["lora"] if adapter else [])],
    )
    return str(data.to_yaml())


def _is_hub_name(value: Any) -> bool:
    """Returns whether a value reads as `owner/name`, and is no path here."""
    return (
        isinstance(value, str)
        and value.count("/") == 1
        and not must_be_local(value)
        and all(part.replace("-", "").replace("_", "").replace(".", "").isalnum()
                for part in value.split("/"))
        and not Path(value).exists()
    )  # fmt: skip


def _shown_name(value: Any) -> str:
    """Returns a hub name as it is, and of a path its last part: the rest is this machine's."""
    text = str(value)
    return text if _is_hub_name(value) or "${" in text else Path(text).name


def _data(record: Mapping[str, Any]) -> list[str]:
    config = record.get("config", {}).get("data", {})
    found = record.get("data") or {}
    given = [*names_of(config.get("dataset")), *names_of(config.get("eval_dataset"))]
    names = ", ".join(_code(_shown_name(name)) for name in given)
    counted = ("num_examples", "num_eval_examples", "num_bad_rows", "num_units")
    labels = ("examples", "examples to evaluate on", "bad rows left out", found.get("units", ""))
    counts = [
        f"{found[key]:,} {label}"
        for key, label in zip(counted, labels, strict=True)
        if isinstance(found.get(key), int)
    ]
    lines = [f"- {_plain(' '.join(line.split()))}" for line in found.get("sources", ())]
    return [f"{names}: {', '.join(counts) or 'not counted'}.\n", *lines, ""]


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the keys that are not as they are by default."""
    usual = dict(leaves_of(ModelConfig().to_cfg()))
    for key, value in leaves_of(config):
        section, _, rest = key.partition(".")
        if key == "seed" or key in _ALWAYS or (section in _SECTIONS and usual.get(key) != value):
            is_place = section == "data" and rest in ("dataset", "eval_dataset")
            yield key, ", ".join(map(_shown_name, names_of(value))) if is_place else value


def _losses(run: Run) -> Iterator[tuple[str, str]]:
    curves = run.curves()
    losses = curves.get("train/loss", [])
    if losses:
        yield "steps", f"{losses[-1][0]:,}"
        yield "first loss", f"{losses[0][1]:.4f}"
        yield "last loss", f"{losses[-1][1]:.4f}"
    for name, points in curves.items():
        if name.startswith("eval/") and ("loss" in name or "perplexity" in name or "acc" in name):
            pick = max if "acc" in name else min
            yield f"best {name.removeprefix('eval/')}", f"{pick(v for _, v in points):.4f}"


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_code(name)} | {_code(str(value))} |" for name, value in rows]
    if not lines:
        return "Nothing is known.\n"
    return "\n".join([f"| {' | '.join(heads)} |", "|---|---|", *lines, ""])


def _code(text: str) -> str:
    """Returns a text as code in one line: it can end neither the code nor a cell of a table."""
    line = " ".join(text.split())
    line = line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}…"
    return f"`{line.replace('`', chr(39)).replace('|', chr(92) + '|')}`" if line else ""


def _plain(text: str) -> str:
    """Returns a text whose characters mean nothing in Markdown or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#|!&" else c for c in text)
