"""The service under test: the story model through each family."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import model_application

ROOT = Path(__file__).resolve().parents[2]
CONTEXT_LENGTH = 8192
"""Tools in words and their results take more than the story model's 1024 tokens. What it writes
beyond them makes less sense still, which no check looks at."""
FAMILIES = ("vllm", "transformers", "own", "plain", "remote")


def copy_story(work: Path) -> Path:
    """Returns a copy of the shipped story model that takes longer texts."""
    folder = work / "story"
    shutil.copytree(ROOT / "models" / "story", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT_LENGTH
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["model_max_length"] = CONTEXT_LENGTH
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def applications(families: list[str], story: Path, url: str) -> list[dict[str, Any]]:
    """Returns the Serve file's entries, one for each family; each has its family's name.

    The family that relays brings the one that it relays to.

    Args:
        families: Some of `FAMILIES`.
        story: The model's folder.
        url: The service's address, for the family that relays to another one.
    """
    common = {
        "task": "text-generation",
        "model_optim": {"dtype": "float32"},
        "hardware": {"cpus": 1},
    }
    engine = {
        "max_model_len": CONTEXT_LENGTH,
        "max_num_seqs": 16,
        "enforce_eager": True,
        # So small a model goes on with white space where JSON lets it.
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        # The story model's template tells of no tools, so the form of calls is said here.
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    path = str(story)
    own = {"import": "scripts.frameworks.own_story", "name_or_path": path}
    models: dict[str, dict[str, Any]] = {
        "vllm": {
            "model": {"family": "vllm", "name_or_path": path},
            "serving": {"engine": engine},
        },
        "transformers": {"model": {"family": "hf-transformers", "name_or_path": path}},
        "own": {"model": {"family": "own-story", **own}},
        "plain": {"model": {"family": "plain-story", **own}},
        "remote": {
            "model": {"family": "remote", "name_or_path": f"{url}/models/transformers/v1"},
            "serving": {"engine": {"model": "transformers"}},
        },
    }
    wanted = [*families]
    if "remote" in wanted and "transformers" not in wanted:
        wanted.append("transformers")
    return [
        model_application(name, {**common, "run_name": name, **models[name]}) for name in wanted
    ]


def read_capabilities(url: str, name: str) -> dict[str, Any]:
    """Returns what the card of a model says that it can do."""
    with urllib.request.urlopen(f"{url}/v1/models/{name}", timeout=30) as answer:
        return json.load(answer).get("capabilities") or {}
