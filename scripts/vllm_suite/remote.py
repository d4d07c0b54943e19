"""Stands in for `tests.utils` of vLLM's tests: their server is vLLM's own or one behind the router.

`SIDE` in the environment chooses. Whatever model a test names, both sides serve the story model in
the working folder under the name `small`, with the arguments that the test gives.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import run_process
from deployments.vllm.arguments import load_arguments, open_arguments
from truthgpt_serve.cluster.ports import free_port

NAME = "small"
ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 400
REQUEST_TIMEOUT_S = 120
MAX_MODEL_LEN = 1024
KV_CACHE_BYTES = 256 * 1024 * 1024
ROCM_EXTRA_ARGS: list[str] = []
VLLM_PATH = Path(os.environ.get("VLLM_SUITE_SOURCE", "."))


def _skip_all(**_: Any) -> pytest.MarkDecorator:
    return pytest.mark.skipif(True, reason="needs several GPUs")


multi_gpu_only = _skip_all
requires_fp8 = pytest.mark.skipif(True, reason="needs a GPU with FP8")


def read_arguments(arguments: list[str]) -> dict[str, Any]:
    """Returns vLLM's command line as argument names and values, those at their default left out."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    parsed = vars(parser.parse_args(arguments))
    given = {k: v for k, v in parsed.items() if v is not None and v != parser.get_default(k)}
    if "max_model_len" in given:
        given["max_model_len"] = min(int(given["max_model_len"]), MAX_MODEL_LEN)
    given.pop("gpu_memory_utilization", None)
    given["kv_cache_memory_bytes"] = KV_CACHE_BYTES
    return given


def product_config(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the model's configuration for arguments of vLLM's command line."""
    engine = {name: value for name, value in given.items() if name in open_arguments()}
    adapters = [{"name": lora.name, "path": lora.path} for lora in given.get("lora_modules") or []]
    for name in ("max_loras", "max_cpu_loras"):
        engine.pop(name, None)
    dtype = str(given.get("dtype", "auto"))
    most = given.get("max_logprobs")
    return {
        "model": {"family": "vllm", "name_or_path": str(folder)},
        "model_optim": {"dtype": {"half": "float16"}.get(dtype, dtype)},
        "hardware": {"gpus": 0, "cpus": 1},
        "seed": int(given.get("seed", 0)),
        "serving": {
            "engine": _plain(engine),
            "adapters": adapters,
            "limits": {} if most is None else {"max_logprobs": int(most)},
        },
    }


def _plain(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments as YAML can hold them."""
    return {
        name: _given_fields(value)
        for name, value in engine.items()
        if load_arguments()[name]["kind"]
    }


def _given_fields(value: Any) -> Any:
    """Returns what one of vLLM's configurations was made from, other values as they are."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {one.name: _given_fields(getattr(value, one.name)) for one in fields(value) if one.init}


@contextmanager
def _own_server(
    given: Mapping[str, Any], arguments: list[str], env: dict[str, str]
) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments,
        "--host", "127.0.0.1", "--port", str(port), "--model", str(Path(NAME).resolve()),
        "--served-model-name", NAME, "--kv-cache-memory-bytes", str(KV_CACHE_BYTES),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if "max_model_len" in given:
        command += ["--max-model-len", str(given["max_model_len"])]
    url = f"http://127.0.0.1:{port}"
    with run_process(command, env, url):
        yield url


@contextmanager
def _router(given: Mapping[str, Any], env: dict[str, str]) -> Iterator[str]:
    config = product_config(given, Path(NAME).resolve())
    with LocalCluster(ROOT / "configs" / "ray.env", env=env) as cluster:
        cluster.deploy([model_application(NAME, config), router_application(cluster.port)])
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield cluster.url


class RemoteOpenAIServer:
    """What the tests use of vLLM's class of this name, for either side."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(
        self,
        model: str,
        vllm_serve_args: list[str],
        *,
        env_dict: Mapping[str, str] | None = None,
        **_: Any,
    ) -> None:
        self._arguments = vllm_serve_args
        self._env = {**(env_dict or {}), "HF_HUB_OFFLINE": "1"}
        self._stack = ExitStack()
        self.url_root = ""

    def __enter__(self) -> Self:
        """Starts the side."""
        given = read_arguments(self._arguments)
        if os.environ["VLLM_SUITE_SIDE"] == "router":
            side = _router(given, self._env)
        else:
            side = _own_server(given, self._arguments, self._env)
        self.url_root = self._stack.enter_context(side)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it."""
        self._stack.close()

    def url_for(self, *parts: str) -> str:
        """Returns the address of a route."""
        return self.url_root + "/" + "/".join(parts)

    def get_client(self, **options: Any) -> openai.OpenAI:
        """Returns OpenAI's client."""
        return openai.OpenAI(**self._options(options))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """Returns OpenAI's asynchronous client."""
        return openai.AsyncOpenAI(**self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {
            "base_url": self.url_for("v1"),
            "api_key": self.DUMMY_API_KEY,
            "max_retries": 0,
            "timeout": httpx.Timeout(REQUEST_TIMEOUT_S),
            **options,
        }
