"""The service that hostile requests are sent to: four small models that ask for keys."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from benchmarks.local_cluster import model_application, router_application
from deployments.onnx.tiny_model import make_tiny_vision
from deployments.vllm.tiny_model import make_tiny_llama
from tests.fuzz.credentials import Keys
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.access.key_edit import add_key, revoke_key, rotate_key
from truthgpt_serve.wording import KEY_PREFIX

MODELS = ("echo", "writer", "painter", "vision")
LOGGING = {"encoding": "JSON", "enable_access_log": True}
SMALL: dict[str, Any] = {"cpus": 0.1, "gpus": 0}


def make_keys(file: Path) -> Keys:
    """Writes a file with keys, and returns those that are let in and those that are not."""
    former, gone = add_key(file, {"name": "rotated"}), add_key(file, {"name": "gone"})
    good = {
        "all": add_key(file, {"name": "all", "admin": True}),
        "some": add_key(file, {"name": "some", "models": ["echo"]}),
        "few": add_key(file, {"name": "few", "requests_per_minute": 60, "tokens_per_minute": 900}),
        "rotated": rotate_key(file, "rotated", grace_s=0),
    }
    revoke_key(file, "gone")
    bad = {
        "former": former,
        "gone": gone,
        "unknown": KEY_PREFIX + secrets.token_urlsafe(32),
        "changed": good["all"][:-4] + "zzzz",
        "foreign": "sk-" + secrets.token_hex(24),
        "long": KEY_PREFIX + secrets.token_urlsafe(3000),
    }
    return Keys(good, bad)


def applications(folder: Path, port: int) -> list[dict[str, Any]]:
    """Returns the Serve file's entries; the models' files are written into `folder`."""
    create_pipeline("sd").save_pretrained(folder / "painter")
    auth = {"auth": {"keys_file": str(folder / "keys.yaml")}}
    configs: dict[str, dict[str, Any]] = {
        "echo": {"model": {"family": "echo"}, "hardware": SMALL, "serving": {"num_replicas": 2}},
        "writer": {
            "model": {
                "family": "hf-transformers",
                "name_or_path": str(make_tiny_llama(folder / "llama")),
            },
            "hardware": SMALL,
            "serving": {"engine": {"max_model_len": 256, "max_new_tokens": 64}},
        },
        "painter": {
            "task": "image-generation",
            "model": {"name_or_path": str(folder / "painter")},
            "hardware": SMALL,
            "serving": {
                "engine": {
                    "default_steps": 2,
                    "max_steps": 4,
                    "default_size": "64x64",
                    "max_pixels": 64 * 64,
                }
            },
        },
        "vision": {
            "task": "tensor",
            "model": {"name_or_path": str(make_tiny_vision(folder / "vision.onnx"))},
            "hardware": SMALL,
        },
    }
    entries = [model_application(name, {**config, **auth}) for name, config in configs.items()]
    entries.append(router_application(port, **auth))
    return [{**entry, "logging_config": LOGGING} for entry in entries]
