"""A model's configuration as vLLM's own command line, read by vLLM's own parser."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.launcher import validate_api_server_args
from vllm.logger import configure_logging_from_args
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.system_utils import set_ulimit
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from deployments.vllm.adapters.files import largest_rank, read_config
from deployments.vllm.arguments import load_arguments
from deployments.vllm.config import attention_backend, gpu_memory_share, tensor_parallel_size
from deployments.vllm.hardware import binds_threads, prepare_cpu
from deployments.vllm.logs import added_log_settings
from deployments.vllm.tracing import trace_endpoint
from truthgpt_serve.errors import ConfigError, Fault

_IN_ENGINE_PROCESS = f"{UniProcExecutor.__module__}.{UniProcExecutor.__qualname__}"
"""Runs the model in the engine's process. vLLM on CPU takes a process more, and both spin on a core
for a second after each request, because only so can it bind threads to cores."""

MAX_LORAS_TOGETHER = 8
"""Most adapters in one batch unless `max_loras` says otherwise: each costs memory of its rank."""


def parse_arguments(
    cfg: Mapping[str, Any],
    name: str,
    adapters: Sequence[Mapping[str, Any]] = (),
    chosen: Mapping[str, Any] | None = None,
) -> Namespace:
    """Returns vLLM's arguments for a model, read by vLLM's own parser.

    Args:
        cfg: The whole configuration.
        name: The model name.
        adapters: Those that will be loaded, each with a local `path`.
        chosen: What `serving.engine` leaves open, and the model's files decide.

    Raises:
        ConfigError: vLLM refuses one.
    """
    parser = make_arg_parser(_Parser())
    given = {key: value for key, value in cfg["serving"]["engine"].items() if value is not None}
    values = {**(chosen or {}), **given, **_product_arguments(cfg, name, adapters)}
    tokens: list[str] = []
    for key, value in values.items():
        if value is not None and value != parser.get_default(key):
            tokens.extend(_tokens(key, value))
    try:
        args = parser.parse_args(tokens)
        with added_log_settings():
            configure_logging_from_args(args)
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if args.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (ValueError, TypeError, KeyError) as error:
        message = str(error.args[0] if error.args else error)
        raise ConfigError([Fault(f"model {name!r}: serving.engine", message)]) from error
    # A server with many connections needs more than the usual 1024 descriptors.
    set_ulimit()
    return cast("Namespace", args)


class _Parser(FlexibleArgumentParser):
    """vLLM's parser, which raises where a command line would exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _tokens(key: str, value: Any) -> Iterator[str]:
    """Yields an argument as vLLM's command line takes it."""
    option, kind = f"--{key.replace('_', '-')}", load_arguments()[key]["kind"]
    if kind == "flag":
        yield option if value else f"--no-{option[2:]}"
    elif isinstance(value, Mapping) or kind == "json list":
        yield f"{option}={json.dumps(value)}"
    elif not isinstance(value, list):
        yield f"{option}={value}"
    elif key == "middleware":
        yield from (f"{option}={item}" for item in value)
    else:
        yield from (option, *map(str, value))


def _product_arguments(
    cfg: Mapping[str, Any], name: str, adapters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the arguments that other keys of the configuration decide."""
    engine, optim = cfg["serving"]["engine"], cfg["model_optim"]
    values: dict[str, Any] = {
        "model": cfg["model"]["name_or_path"],
        "revision": cfg["model"]["revision"],
        "served_model_name": [name, *cfg["serving"]["aliases"]],
        "seed": cfg["seed"],
        "dtype": optim["dtype"],
        "quantization": optim["quantization"],
        "attention_backend": attention_backend(cfg),
        "tensor_parallel_size": tensor_parallel_size(cfg),
        "disable_uvicorn_access_log": True,
        "otlp_traces_endpoint": trace_endpoint(engine),
        **_adapter_arguments(cfg, adapters),
    }
    runner = {"text-generation": "generate", "embedding": "pooling"}.get(cfg["task"])
    if engine.get("runner") is None and runner is not None:
        values["runner"] = runner
    if current_platform.is_cpu():
        kv_cache_bytes = prepare_cpu(cfg)
        if not binds_threads():
            values["distributed_executor_backend"] = _IN_ENGINE_PROCESS
        if kv_cache_bytes is not None:
            values["kv_cache_memory_bytes"] = kv_cache_bytes
        return values
    if engine.get("gpu_memory_utilization") is None:
        values["gpu_memory_utilization"] = gpu_memory_share(cfg)
    if cfg["hardware"]["gpus"] not in ("auto", 0, 1) and cfg["hardware"]["gpus"] > 1:
        # Workers become actors in the replica's own placement group.
        values["distributed_executor_backend"] = "ray"
    return values


def _adapter_arguments(
    cfg: Mapping[str, Any], adapters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    engine = cfg["serving"]["engine"]
    if not adapters:
        return {}
    number = len(adapters)
    values: dict[str, Any] = {"enable_lora": True}
    together = engine.get("max_loras") or min(number, MAX_LORAS_TOGETHER)
    if current_platform.is_cpu():
        # vLLM 0.32 on CPU applies the last place to the rows of a batch that have no adapter, so
        # requests for the model alone would answer as an adapter does: the last stays empty.
        together = max(number, together) + 1
    values["max_loras"] = together
    values["max_cpu_loras"] = max(number, together, engine.get("max_cpu_loras") or 0)
    if engine.get("max_lora_rank") is None:
        rank = max(largest_rank(read_config(Path(adapter["path"]))) for adapter in adapters)
        choices = sorted(load_arguments()["max_lora_rank"]["choices"])
        values["max_lora_rank"] = next((c for c in choices if c >= rank), choices[-1])
    return values
