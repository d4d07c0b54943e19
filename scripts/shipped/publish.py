"""Copies what a training has made into `models/`, without what is true on one machine only.

`python -m scripts.shipped.publish --run runs/story --to models/story`
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
"""Written by hand: it stays."""
_OF_ONE_MACHINE = frozenset({"_name_or_path", "is_local", "local_files_only"})
_BASE = "base_model_name_or_path"


def publish(run: Path, to: Path) -> None:
    """Replaces all files in a folder but the card by those of a run's result.

    Args:
        run: Folder of a finished training.
        to: The model's folder; an adapter's is beside that of its model.

    Raises:
        FileNotFoundError: The run has no result.
    """
    model = run / "model"
    if not model.is_dir():
        raise FileNotFoundError(f"{model} is missing: the training is not finished")
    to.mkdir(parents=True, exist_ok=True)
    for old in to.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
        elif old.name != CARD:
            old.unlink()
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        if path.name == CARD:
            continue
        target = to / path.relative_to(model)
        target.parent.mkdir(exist_ok=True)
        if path.suffix == ".json" and path.name != "tokenizer.json":
            cleaned = clean(json.loads(path.read_text(encoding="utf-8")))
            target.write_text(json.dumps(cleaned, indent=2) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, target)


def clean(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a file's settings without paths of this machine."""
    kept = {name: value for name, value in settings.items() if name not in _OF_ONE_MACHINE}
    if isinstance(base := kept.get(_BASE), str):
        kept[_BASE] = f"models/{Path(base).name}"
    return kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Copy a training's result into models/.")
    parser.add_argument("--run", type=Path, required=True, help="runs/NAME")
    parser.add_argument("--to", type=Path, required=True, help="models/NAME")
    options = parser.parse_args(arguments)
    publish(options.run, options.to)


if __name__ == "__main__":
    main()
