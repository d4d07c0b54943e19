"""The hooks for grammars in vLLM: in the request's way to the engine, and in the engine's process.

The only file about grammars that uses vLLM's private parts;
`tests/unit/families/vllm/grammar/test_engine_hooks` fails when they move.
"""

from __future__ import annotations

import contextvars
import json
import os
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from prometheus_client import REGISTRY
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import (
    XgrammarBackend,
    has_xgrammar_unsupported_json_features,
)
from vllm.v1.structured_output.utils import choice_as_grammar, grammar_is_likely_lark

from deployments.vllm.grammar.lane import SlowLane
from deployments.vllm.grammar.threads import GrammarThreads
from deployments.vllm.patches.methods import replace_method
from truthgpt_serve.errors import RequestError, ServerError, TruthGPTError
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.grammar.strict import StrictCompiler

BACKENDS = ("auto", "xgrammar")
"""Values of `structured_outputs_config.backend` for which grammars are compiled beforehand."""

ENGINE_THREADS = 8
"""Threads of the engine for grammars: many more than slow grammars may hold."""

_COMPILER_THREADS = 8
"""With how many the engine compiles a grammar."""

STUCK_S = 180.0
"""How long an admitted grammar may keep its request from starting."""

_DEFERRED = "vllm:num_requests_waiting_by_reason"

_checked: contextvars.ContextVar[bool] = contextvars.ContextVar("grammar_checked", default=False)


def compiles_beforehand(client: Any) -> bool:
    """Whether the engine of this client takes grammars that xgrammar compiles."""
    config = client.vllm_config
    return (
        config.structured_outputs_config.backend in BACKENDS
        and not config.model_config.skip_tokenizer_init
        and not config.model_config.is_diffusion
    )


def as_compiled(kind: str, text: str) -> tuple[str, str]:
    """Returns kind and text as the engine's compiler gets them.

    Raises:
        ValueError: Choices are not a list of at least one text, or JSON is not wanted.
    """
    if kind == "json_object":
        raise ValueError("must be true; leave it out for an unconstrained answer")
    if kind == "choice":
        choices = json.loads(text)
        if not isinstance(choices, list) or not all(isinstance(one, str) for one in choices):
            raise ValueError("must be a list of strings")
        if not choices:
            raise ValueError("must not be empty")
        return "grammar", choice_as_grammar(choices)
    if kind == "grammar" and grammar_is_likely_lark(text):
        return "lark", text
    return kind, text


def describe_compiler(client: Any) -> dict[str, Any]:
    """Returns what another process needs to compile as the engine of this client does."""
    config = client.vllm_config
    backend = XgrammarBackend(
        config, tokenizer=client.get_tokenizer(), vocab_size=config.model_config.get_vocab_size()
    )
    grammar = backend.compile_grammar(StructuredOutputOptions.REGEX, "a")
    return {
        "tokenizer_info": cast(Any, grammar).ctx.tokenizer_info.serialize_json(),
        "any_whitespace": not backend.disable_any_whitespace,
        "threads": min(_COMPILER_THREADS, os.cpu_count() or 1),
    }


class GuardedClient:
    """Puts the gate for grammars in front of an engine client's `add_request`.

    Every route of vLLM ends there, with the grammar that it made of the request's fields and tools.

    Args:
        client: vLLM's client; its method is replaced.
        gate: Says which grammars may pass.
    """

    def __init__(self, client: Any, gate: GrammarGate) -> None:
        self._client = client
        self._gate = gate
        self._add = client.add_request
        self._lane = SlowLane()
        self._waiting: dict[str, float] = {}
        client.add_request = self.add_request

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kw: Any):  # type: ignore[no-untyped-def]
        """Adds a request once its grammar, if it has one, was compiled beforehand."""
        grammar = grammar_of(params)
        if grammar is None:
            return await self._add(request_id, prompt, params, *args, **kw)
        try:
            verdict = await self._gate.check(grammar)
        except RequestError as error:
            raise VLLMValidationError(error.message, parameter=error.param) from error
        except TruthGPTError as error:
            raise GracefulHTTPError(error.message, HTTPStatus(error.status)) from error
        compiled = await self._lane.enter((grammar.kind, grammar.text), verdict.seconds)
        token = _checked.set(verdict.outcome == "ok")
        try:
            queue = await self._add(request_id, prompt, params, *args, **kw)
        except BaseException:
            if compiled is not None:
                compiled.set()  # it did not reach the engine
            raise
        finally:
            _checked.reset(token)
        if compiled is not None:
            _at_first_output(queue, compiled.set)
        self._waiting[queue.request_id] = time.monotonic()
        return queue

    def check_health(self) -> None:
        """Raises when the engine does not get done with a grammar.

        Raises:
            ServerError: A request has waited for its grammar too long.
        """
        states = self._client.output_processor.request_states
        for request_id, since in list(self._waiting.items()):
            state = states.get(request_id)
            if state is None or not state.is_prefilling:
                del self._waiting[request_id]
            elif time.monotonic() - since > STUCK_S and _num_deferred():
                raise ServerError(
                    f"the engine has not compiled a grammar in {STUCK_S:g} s: it is stuck"
                )


def _at_first_output(queue: Any, call: Callable[[], None]) -> None:
    put = queue.put

    def first(output: Any) -> None:
        queue.put = put
        call()
        put(output)

    queue.put = first


def grammar_of(params: Any) -> Grammar | None:
    """Returns what binds the answer, as the engine will get it, or None."""
    outputs = getattr(params, "structured_outputs", None)
    if outputs is None:
        return None
    if outputs.structural_tag is not None:
        return Grammar("structural_tag", outputs.structural_tag, "tools")
    if outputs.json is not None:
        text = outputs.json if isinstance(outputs.json, str) else json.dumps(outputs.json)
        return Grammar("json", text, "structured_outputs.json")
    if outputs.choice is not None:
        return Grammar("choice", json.dumps(outputs.choice), "structured_outputs.choice")
    for kind in ("regex", "grammar"):
        if (text := getattr(outputs, kind)) is not None:
            return Grammar(kind, text, f"structured_outputs.{kind}")
    return None


def _num_deferred() -> float:
    """Returns how many requests the engine's scheduler has put off."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == _DEFERRED
        for sample in metric.samples
        if sample.labels.get("reason") == "deferred"
    )


def mend_checks() -> None:
    """Spares grammars that were compiled beforehand vLLM's own check.

    It runs on the event loop and falls back to other libraries, which have their own endless cases
    and whose grammars the engine would compile with xgrammar all the same.

    Raises:
        RuntimeError: vLLM moved its check.
    """
    parameters = ("model_config", "structured_outputs_config", "tokenizer")
    replace_method(SamplingParams, "_validate_structured_outputs", parameters, _wrap_check)


def _wrap_check(original: Callable[..., Any]) -> Callable[..., Any]:
    def check(self: Any, model_config: Any, structured_outputs_config: Any, tokenizer: Any) -> None:
        config, outputs = structured_outputs_config, self.structured_outputs
        if not _checked.get() or outputs is None or config is None:
            original(self, model_config, config, tokenizer)
            return
        _refuse_unsupported(outputs, config.backend)
        if outputs.choice is not None:
            outputs.grammar, outputs.choice = choice_as_grammar(outputs.choice), None
        outputs._backend = "xgrammar"
        outputs._backend_was_auto = config.backend == "auto"

    return check


def _refuse_unsupported(outputs: Any, backend: str) -> None:
    if backend != "xgrammar" or outputs.json is None:
        return
    schema = json.loads(outputs.json) if isinstance(outputs.json, str) else outputs.json
    if has_xgrammar_unsupported_json_features(schema):
        raise VLLMValidationError("the schema has keywords that xgrammar does not support")


def mend_engine() -> None:
    """Gives the engine of this process enough threads for grammars, behind its steps.

    And a compiler whose JSON is JSON.

    vLLM takes half the cores, so one thread on two cores: a slow grammar then holds up every other
    structured request. And the first structured request decides on the library for all: one that
    falls back to another would leave the engine without grammars in EBNF.

    Raises:
        RuntimeError: vLLM moved its grammars.
    """
    replace_method(StructuredOutputManager, "__init__", ("vllm_config",), _wrap_create)
    replace_method(XgrammarBackend, "__post_init__", (), _wrap_backend)
    replace_method(StructuredOutputManager, "grammar_init", ("request",), _wrap_start)


def _wrap_create(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, vllm_config: Any) -> None:
        original(self, vllm_config)
        narrow = getattr(self, "executor", None)
        if narrow is not None:
            count = max(ENGINE_THREADS, narrow._max_workers)
            self.executor = GrammarThreads(count, _key_of)
            narrow.shutdown(wait=False)

    return __init__


def _wrap_backend(original: Callable[..., Any]) -> Callable[..., Any]:
    def __post_init__(self: Any) -> None:
        original(self)
        self.compiler = StrictCompiler(self.compiler)

    return __post_init__


def _wrap_start(original: Callable[..., Any]) -> Callable[..., Any]:
    def grammar_init(self: Any, request: Any) -> None:
        outputs = request.sampling_params and request.sampling_params.structured_outputs
        if outputs and self.vllm_config.structured_outputs_config.backend == "auto":
            outputs._backend = "xgrammar"
        original(self, request)

    return grammar_init


def _key_of(request: Any) -> Any:
    return request.structured_output_request.structured_output_key
