"""Starts vLLM's engine and its own OpenAI application."""

from __future__ import annotations

import logging
import types
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
from vllm.entrypoints.launchers.app import build_app
from vllm.platforms import current_platform

from deployments.vllm.adapters.loading import Adapters
from deployments.vllm.application.model_list import hide_paths
from deployments.vllm.backend_info import describe, describe_capabilities
from deployments.vllm.command_line import parse_arguments
from deployments.vllm.engine_errors import ErrorNote
from deployments.vllm.grammar.engine_hooks import (
    GuardedClient,
    as_compiled,
    compiles_beforehand,
    describe_compiler,
    mend_checks,
)
from deployments.vllm.hardware import gpu_turn, prepare_environment
from deployments.vllm.media import use_listed_media
from deployments.vllm.orphans import bind_children
from deployments.vllm.parsers import choose_parsers
from deployments.vllm.patches.audio_rates import mend_audio_rates
from deployments.vllm.patches.cut_texts import mend_cuts
from deployments.vllm.patches.forced_calls import bind_forced_calls
from deployments.vllm.patches.key_requests import mark_requests
from deployments.vllm.patches.media_parts import mend_media_parts
from deployments.vllm.patches.rejected_tokens import mend_answers
from deployments.vllm.queued_work import QueuedWork, count_held, token_counter
from deployments.vllm.sharing.answer_turns import share_answers
from deployments.vllm.sharing.engine_turns import share_engine
from deployments.vllm.sharing.prompt_turns import share_prompts
from deployments.vllm.sharing.tokenizer_turns import share_tokenizer
from deployments.vllm.toolchain import prepare_compilers
from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import ConfigError, Fault, TruthGPTError, UnavailableError
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.server.text_limits import TextLimits

logger = logging.getLogger(__name__)


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
        mend_cuts()
        mend_media_parts()
        mend_audio_rates()
        mark_requests(client)
        turns = (share_engine(client), share_answers(client), share_prompts(client))
        share_tokenizer(client.renderer._executor)
        self.tasks = await client.get_supported_tasks()
        app = build_app(args, self.tasks, client.model_config)
        await init_app_state(client, app.state, args, self.tasks)
        # What vLLM's handlers tell to exit when the engine is dead; here `fatal_error` says it.
        app.state.server = types.SimpleNamespace(should_exit=False)
        await self.adapters.load(app.state.openai_serving_models)
        hide_paths(app.state.openai_serving_models)
        # vLLM's own start-up: statistics in the log, and a heap that the collector skips.
        await stack.enter_async_context(app.router.lifespan_context(app))
        self._client = client
        self._queued_work = QueuedWork(token_counter(client), partial(count_held, turns))
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
