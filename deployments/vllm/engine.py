"""Starts vLLM's engine and its own OpenAI application; the only file that imports vLLM."""

from __future__ import annotations

import json
import logging
import types
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
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
from deployments.vllm.adapters.loading import Adapters
from deployments.vllm.arguments import load_arguments
from deployments.vllm.backend_info import describe, describe_capabilities
from deployments.vllm.config import attention_backend, gpu_memory_share, tensor_parallel_size
from deployments.vllm.engine_errors import ErrorNote
from deployments.vllm.grammar.engine_hooks import (
    GuardedClient,
    as_compiled,
    compiles_beforehand,
    describe_compiler,
    mend_checks,
)
from deployments.vllm.hardware import (
    binds_threads,
    gpu_turn,
    prepare_cpu,
    prepare_environment,
)
from deployments.vllm.logs import added_log_settings
from deployments.vllm.media import use_listed_media
from deployments.vllm.orphans import bind_children
from deployments.vllm.parsers import choose_parsers
from deployments.vllm.patches.forced_calls import bind_forced_calls
from deployments.vllm.patches.key_requests import mark_requests
from deployments.vllm.patches.rejected_tokens import mend_answers
from deployments.vllm.queued_work import QueuedWork, token_counter
from deployments.vllm.toolchain import prepare_compilers
from deployments.vllm.tracing import trace_endpoint
from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import ConfigError, Fault, TruthGPTError, UnavailableError
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.server.text_limits import TextLimits

logger = logging.getLogger(__name__)

_IN_ENGINE_PROCESS = f"{UniProcExecutor.__module__}.{UniProcExecutor.__qualname__}"
"""Runs the model in the engine's process. vLLM on CPU takes a process more, and both spin on a core
for a second after each request, because only so can it bind threads to cores."""

MAX_LORAS_TOGETHER = 8
"""Most adapters in one batch unless `max_loras` says otherwise: each costs memory of its rank."""


class Engine:
    """One engine and the application in front of it.

    Attributes:
        args: vLLM's own arguments.
        adapters: The model's adapters, and which of them failed.
        tasks: What the started engine can do, in vLLM's words (`generate`, `embed`, ...).
        acceleration: Backend of the started engine, for the model's card.
        capabilities: What a model that generates text can do, for its card.
        limits: What a request to the started engine may ask for.
        grammars: Lets grammars through to the started engine; None if it does not generate.
    """

    def __init__(self, cfg: Mapping[str, Any], name: str) -> None:
        """Checks the arguments; nothing starts before `start`.

        Raises:
            ConfigError: vLLM refuses an argument, the hardware does not fit this vLLM, or a model
                that would be compiled finds no compiler.
        """
        self._cfg = cfg
        self._name = name
        self._stack: AsyncExitStack | None = None
        self._client: EngineClient | None = None
        self._guard: GuardedClient | None = None
        self._queued_work: QueuedWork | None = None
        self.limits: TextLimits | None = None
        self.grammars: GrammarGate | None = None
        self._error_note: ErrorNote | None = None
        self.tasks: tuple[str, ...] = ()
        self.acceleration: dict[str, Any] = {}
        self.capabilities: dict[str, Any] = {}
        _check_platform(cfg)
        prepare_compilers(cfg, on_cpu=current_platform.is_cpu())
        prepare_environment(cfg)
        use_listed_media()
        self.adapters = Adapters(cfg)
        self.args = parse_arguments(cfg, name, self.adapters.usable, choose_parsers(cfg))

    async def start(self) -> Any:
        """Starts the engine on the running event loop; returns vLLM's ASGI application.

        Blocks the event loop while the engine's processes load, as vLLM's own server does. The
        calling thread must live as long as the engine: see `orphans`.

        Raises:
            UnavailableError: The engine did not start; nothing of it is left.
        """
        self._error_note = ErrorNote()
        try:
            async with AsyncExitStack() as stack:
                app = await self._open(stack)
                self._stack = stack.pop_all()
            return app
        except TruthGPTError:
            raise
        except Exception as error:
            cause = self._error_note.read() or f"{type(error).__name__}: {error}"
            raise UnavailableError(
                f"model {self._name!r}: vLLM did not start with {self.args.model!r}: {cause}"
            ) from error
        finally:
            if self._stack is None:
                self._error_note.close()

    async def _open(self, stack: AsyncExitStack) -> Any:
        args = self.args
        async with gpu_turn(self._cfg):
            with bind_children():
                client = await stack.enter_async_context(build_async_engine_client(args))
        mark_requests(client)
        self.tasks = await client.get_supported_tasks()
        app = build_app(args, self.tasks, client.model_config)
        await init_app_state(client, app.state, args, self.tasks)
        # What vLLM's handlers tell to exit when the engine is dead; here `fatal_error` says it.
        app.state.server = types.SimpleNamespace(should_exit=False)
        await self.adapters.load(app.state.openai_serving_models)
        # vLLM's own start-up: statistics in the log, and a heap that the collector skips.
        await stack.enter_async_context(app.router.lifespan_context(app))
        self._client = client
        self._queued_work = QueuedWork(token_counter(client))
        parsers = ("tool_call_parser", "reasoning_parser")
        self.acceleration = {
            **describe(client.vllm_config),
            **{key: getattr(args, key) or None for key in parsers},
        }
        self.limits = TextLimits(
            TextLimitsSection.model_validate(self._cfg["serving"]["limits"]),
            client.model_config.max_model_len,
            client.model_config.get_vocab_size(),
        )
        if "generate" in self.tasks:
            self.capabilities = describe_capabilities(client.model_config, args)
            self._guard_grammars(client, stack)
        return app

    def _guard_grammars(self, client: EngineClient, stack: AsyncExitStack) -> None:
        limits = self._cfg["serving"]["limits"]
        mend_answers()
        bind_forced_calls()
        if not compiles_beforehand(client):
            self.grammars = GrammarGate(limits, None, as_compiled)
            return
        self.grammars = GrammarGate(limits, partial(describe_compiler, client), as_compiled)
        stack.callback(self.grammars.close)
        mend_checks()
        self._guard = GuardedClient(client, self.grammars)

    def check_health(self) -> None:
        """Raises vLLM's own error when the engine is dead; nothing before it was started."""
        if self._client is not None and self._client.errored:
            raise self._client.dead_error
        if self._guard is not None:
            self._guard.check_health()

    def queued_work(self) -> dict[str, float]:
        """Returns the work that waits in the started engine; see `QueuedWork.read`."""
        return {} if self._queued_work is None else self._queued_work.read()

    def is_dead(self) -> bool:
        """Returns whether the started engine can never answer again."""
        return self._client is not None and self._client.errored

    def fatal_error(self) -> str | None:
        """Returns why the engine is dead, or None."""
        if not self.is_dead():
            return None
        cause = self._error_note and self._error_note.read()
        return f"the engine's process ended: {cause or 'it was killed, or its memory ran out'}"

    async def close(self) -> None:
        """Stops the engine and its processes; call it on the event loop that started it."""
        stack, self._stack, self._client = self._stack, None, None
        if self._error_note is not None:
            self._error_note.close()
        if stack is not None:
            await stack.aclose()


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


def _check_platform(cfg: Mapping[str, Any]) -> None:
    gpus = cfg["hardware"]["gpus"]
    on_cpu = current_platform.is_cpu()
    if on_cpu and gpus not in ("auto", 0):
        message = f"is {gpus}, but the vLLM installed here is the one for CPU"
        fix = "set it to 0, or install the extra `gpu`"
    elif not on_cpu and gpus == 0:
        message = "is 0, but the vLLM installed here needs a GPU"
        fix = "set it to 1 or a fraction, or install the extra `cpu`"
    else:
        return
    raise ConfigError([Fault("hardware.gpus", message, fix)])
