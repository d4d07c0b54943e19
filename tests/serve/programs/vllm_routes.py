"""Prints every route that vLLM registers for any task: `vllm_routes.py WEIGHTS`, a JSON object.

Starts no engine. With vLLM's switches for development and for administrators on.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_ENABLE_COHERE_API": "1",
}

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.app import build_app
from vllm.tasks import SupportedTask

from deployments.vllm.command_line import parse_arguments
from truthgpt_serve.config import load_model_config

MODELS: list[tuple[str, tuple[SupportedTask, ...]]] = [
    ("text-generation", ("generate", "transcription", "realtime", "render")),
    ("embedding", ("embed", "token_embed")),
    ("embedding", ("classify", "token_classify", "plugin")),
]
"""The product's tasks, and what an engine with such a model can do."""


def main() -> None:
    found: dict[str, list[str]] = {}
    for task, abilities in MODELS:
        config = {
            "task": task,
            "model": {"family": "vllm", "name_or_path": sys.argv[1]},
            "hardware": {"gpus": 0, "cpus": 1},
            "model_optim": {"dtype": "float32"},
            "serving": {
                "engine": {
                    "enable_fault_tolerance": True,
                    "profiler_config": {"profiler": "torch", "torch_profiler_dir": "/tmp"},
                    "enable_scale_out": True,
                    "enable_tokenizer_info_endpoint": True,
                }
            },
        }
        args = parse_arguments(load_model_config(config).to_cfg(), "tiny")
        model = AsyncEngineArgs.from_cli_args(args).create_model_config()
        app: Any = build_app(args, abilities, model)
        for route in app.routes:
            found.setdefault(route.path, []).extend(sorted(getattr(route, "methods", None) or []))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
