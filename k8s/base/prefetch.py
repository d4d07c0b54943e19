"""Downloads the weights and adapters that a Serve file names into the hub's cache.

Run by the prefetch Job, with the product's own reading of the files; starts no model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from truthgpt_serve.config import load_model_args
from truthgpt_serve.config.paths import must_be_local

MODEL_IMPORTS = ("truthgpt_serve.app:model", "truthgpt_serve.app.model")


@dataclass(frozen=True, slots=True)
class Weights:
    """One repository of the hub; `revision` None is its default branch."""

    repository: str
    revision: str | None


def hub_weights(serve_file: dict[str, Any]) -> list[Weights]:
    """Returns what the models of a Serve file load from the hub, each once, in the file's order.

    Raises:
        ConfigError: A model's configuration has faults.
    """
    return list(dict.fromkeys(_all_weights(serve_file)))


def _all_weights(serve_file: dict[str, Any]) -> Iterator[Weights]:
    for application in serve_file.get("applications") or []:
        if application.get("import_path") not in MODEL_IMPORTS:
            continue
        config = load_model_args(application.get("args") or {}, place=str(application.get("name")))
        named = [(config.model.name_or_path, config.model.revision)]
        named += [(adapter.path, None) for adapter in config.serving.adapters]
        for name, revision in named:
            if name is not None and _is_on_the_hub(name):
                yield Weights(name, revision)


def _is_on_the_hub(name: str) -> bool:
    # Where a local path exists, reading the file has made it absolute; a remote model has a URL.
    return "://" not in name and not must_be_local(name) and not Path(name).exists()


def main() -> None:
    """Command line: `prefetch.py SERVE_FILE`."""
    from huggingface_hub import snapshot_download

    serve_file = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    wanted = hub_weights(serve_file)
    print(f"{len(wanted)} repositories to download", flush=True)
    for weights in wanted:
        folder = snapshot_download(weights.repository, revision=weights.revision)
        print(f"{weights.repository}: {folder}", flush=True)


if __name__ == "__main__":
    main()
