"""Arguments of the engine, checked without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.vllm.arguments import load_arguments, open_arguments, set_elsewhere
from deployments.vllm.config import (
    EngineConfig,
)


def faults_of(engine: dict[str, Any]) -> dict[str, str]:
    try:
        EngineConfig.model_validate(engine)
    except ValidationError as error:
        return {".".join(map(str, fault["loc"])): fault["msg"] for fault in error.errors()}
    return {}


@pytest.mark.long("imports vLLM in a process of its own")
def test_list_of_arguments_is_that_of_the_installed_engine(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, root / "scripts/generate_engine_arguments.py", "--check"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_good_arguments_pass() -> None:
    engine = {
        "max_model_len": "8k",
        "max_num_batched_tokens": 4096,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.5,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "compilation_config": {"mode": 0},
        "hf_overrides": {"a": 1},
        "speculative_config": {"method": "ngram"},
        "optimization_level": 2,
        "kv_cache_dtype": "fp8",
        "chat_template": None,
        "cudagraph_capture_sizes": [1, 2],
        "allowed_origins": ["*"],
        "middleware": ["my.module.function"],
        "allowed_media_domains": ["images.example.com", "localhost", "127.0.0.1", "[::1]"],
    }
    assert faults_of(engine) == {}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_modle_len", 1, "did you mean 'max_model_len'?"),
        ("--enforce-eager", True, "did you mean 'enforce_eager'?"),
        ("zzz", 1, "no argument 'zzz'"),
        ("enforce_eager", "yes", "must be true or false, not 'yes'"),
        ("enforce_eager", 1, "must be true or false, not 1"),
        ("max_num_seqs", True, "must be a whole number, not True"),
        ("max_num_seqs", "8", "must be a whole number, not '8'"),
        ("max_model_len", "8 k", "must be a whole number, or one with a suffix"),
        ("max_model_len", "1.5K", "must be a whole number, or one with a suffix"),
        ("gpu_memory_utilization", "half", "must be a number, not 'half'"),
        ("tensor_parallel_size", -3, "must be at least 1, not -3"),
        ("gpu_memory_utilization", 7, "must be at most 1, not 7"),
        ("gpu_memory_utilization", 0, "must be above 0, not 0"),
        ("gpu_memory_utilization", float("nan"), "must be above 0, not nan"),
        ("watermark", 1.0, "must be below 1.0, not 1.0"),
        ("max_model_len", -2, "must be at least -1, not -2"),
        ("kv_cache_dtype", "fp7", "must be one of auto, bfloat16"),
        ("chat_template", 3, "must be a string"),
        ("compilation_config", "x", "must be a mapping"),
        ("cudagraph_capture_sizes", 3, "must be a list of whole numbers"),
        ("cudagraph_capture_sizes", [], "must be a list of whole numbers"),
        ("tool_call_parser", "hermess", "did you mean 'hermes'?"),
        ("reasoning_parser", "zzzzzz", "no reasoning_parser 'zzzzzz'"),
        ("enable_auto_tool_choice", True, "needs `tool_call_parser`"),
        ("allowed_media_domains", ["https://a.org"], "'https://a.org' is not a host name"),
        ("allowed_media_domains", ["a.org", "*.b.org"], "'*.b.org' is not a host name"),
        ("allowed_media_domains", ["a.org:80"], "'a.org:80' is not a host name"),
        ("model", "a/b", "set `model.name_or_path`"),
        ("served_model_name", "a", "application's name"),
        ("dtype", "float32", "set `model_optim.dtype`"),
        ("seed", 1, "set the top-level `seed`"),
        ("port", 1, "set `http_options.port`"),
        ("lora_modules", [], "in `serving.adapters`"),
        ("data_parallel_size", 2, "set `serving.num_replicas`"),
        ("ssl_keyfile", "a", "TLS"),
        ("uvicorn_log_level", "info", "logging_config"),
        ("api_key", ["a"], "in front of the service"),
        ("root_path", "/x", "/models/<name>"),
    ],
)
def test_bad_argument_has_one_fault_at_its_key(key: str, value: Any, message: str) -> None:
    faults = faults_of({key: value, "max_logprobs": 5})
    assert list(faults) == [key]
    assert message in faults[key]


def test_all_faults_are_found_together() -> None:
    assert set(faults_of({"port": 1, "max_num_seqs": "a", "nope": 0})) == {
        "port",
        "max_num_seqs",
        "nope",
    }


def test_parser_of_a_plugin_is_not_looked_up() -> None:
    engine = {"tool_call_parser": "mine", "tool_parser_plugin": "mine.py"}
    assert faults_of(engine) == {}


def test_schema_lists_what_may_be_given() -> None:
    properties = EngineConfig.model_json_schema()["properties"]
    assert set(properties) == set(open_arguments())
    assert properties["max_num_seqs"]["type"] == "integer"
    assert properties["gpu_memory_utilization"]["maximum"] == 1
    assert "model" not in properties
    assert all(set_elsewhere(name) or name in properties for name in load_arguments())
