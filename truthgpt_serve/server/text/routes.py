"""The text routes of one model: chats, completions, and what its tokenizer says.

`request` reads the fields, `abilities` says what the class can do, `codec` calls it for each
answer, `choices` runs several, `response` encodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

from truthgpt_serve.errors import RequestError, UnsupportedError
from truthgpt_serve.grammar.constraints import ConstraintCompiler
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.request_schema import read_request
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.request_reader import RequestReader
from truthgpt_serve.server.text.abilities import (
    Abilities,
    check_abilities,
    find_vocab_size,
    thinking_fields,
)
from truthgpt_serve.server.text.choices import ChoiceRunner, parts_of
from truthgpt_serve.server.text.codec import DEFAULT_MAX_NEW_TOKENS, TextCodec, format_of
from truthgpt_serve.server.text.prompt import SharedPrompt
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest, parse_text
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.server.text.tokens import (
    DetokenizeRequest,
    TokenizeRequest,
    detokenize,
    tokenize,
)
from truthgpt_serve.server.text.tools.alternatives import JSON_KINDS, calls_alone, with_calls
from truthgpt_serve.server.text.tools.codec import ToolCodec
from truthgpt_serve.server.text.tools.request import ToolUse
from truthgpt_serve.server.thinking_switch import Wish

logger = logging.getLogger(__name__)

_NOT_BOUND = (RequestError, RecursionError)
"""A grammar that cannot be, or a schema that is nested too deeply to be put into one."""
TOKENIZE_PATH, DETOKENIZE_PATH = "/tokenize", "/detokenize"


class Binding(NamedTuple):
    """What binds the answers of a request.

    Attributes:
        constraint: A compiled grammar, or None.
        thinks_first: Whether it begins behind the thoughts.
    """

    constraint: Any
    thinks_first: bool = False


class TextRoutes:
    """Answers text requests with one model.

    Args:
        instance: The model; started before the first request.
        reader: Reads its requests.
    """

    def __init__(self, instance: ModelInstance, reader: RequestReader) -> None:
        self._instance = instance
        self._reader = reader
        self._choices = ChoiceRunner(instance)
        self._compiler: ConstraintCompiler | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the loaded class."""
        return Tokenizer.of(self._instance.model)

    @cached_property
    def abilities(self) -> Abilities:
        """What the loaded class can do."""
        return Abilities.of(self._instance.model)

    @cached_property
    def _vocab_size(self) -> int | None:
        return find_vocab_size(self._instance.model)

    async def chat(self, connection: Connection) -> None:
        """Answers `POST /v1/chat/completions`."""
        await self._text(connection, ChatRequest)

    async def complete(self, connection: Connection) -> None:
        """Answers `POST /v1/completions`."""
        await self._text(connection, CompletionRequest)

    async def _fields(self, connection: Connection) -> dict[str, Any]:
        return await self._reader.read_fields(connection, "text-generation", "text routes")

    async def _text(
        self, connection: Connection, kind: type[ChatRequest] | type[CompletionRequest]
    ) -> None:
        request = parse_text(kind, await self._fields(connection))
        request.model = self._reader.own_name(request.model)
        check_abilities(request, self.abilities, self.tokenizer, self._vocab_size)
        async with connection.guard(self._instance.max_request_s) as guard:
            with _named_as_sent(request):
                await self._answer(connection, request, guard.release)

    async def _answer(
        self,
        connection: Connection,
        request: ChatRequest | CompletionRequest,
        release: Callable[[], None],
    ) -> None:
        codecs = self._codecs(request, await self._binding(request))
        if len(codecs) > 1:
            await self._run_many(connection, request, codecs, release)
        elif request.stream:
            await self._instance.stream(codecs[0], connection.emit)
            release()
            await connection.end_events()
        else:
            answer = await self._instance.run(codecs[0])
            release()
            await connection.reply(answer)

    async def _run_many(
        self,
        connection: Connection,
        request: ChatRequest | CompletionRequest,
        codecs: list[TextCodec],
        release: Callable[[], None],
    ) -> None:
        answer_format, num_answers = format_of(request), request.n or 1
        for codec in codecs:
            codec.use(answer_format)
        if request.stream:
            emit = connection.emit
            await self._choices.stream(codecs, answer_format, num_answers, emit)
            release()
            await connection.end_events()
            return
        answer = await self._choices.answer(codecs, answer_format, num_answers)
        release()
        await connection.reply(answer)

    def _thinks(self, request: ChatRequest | CompletionRequest) -> bool:
        """Returns whether answers of a request may think first."""
        return request.messages is not None and self.tokenizer.reasoning is not None

    def think(self, wish: Wish, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what tells the model of thoughts, as `thinking_fields` says."""
        return thinking_fields(wish, given, self.abilities, self.tokenizer)

    async def _binding(self, request: ChatRequest | CompletionRequest) -> Binding:
        """Returns what binds the answers of a request."""
        use, thinking = request.tool_use, self.tokenizer.reasoning
        thinks = self._thinks(request) and self.abilities.takes_thoughts and not request.goes_on
        thinks = thinks and thinking is not None and thinking.binds
        if use is not None and use.is_forced:
            after = await self._forced(use, is_begun=False) if thinks else None
            if after is not None:
                return Binding(after, thinks_first=True)
            return Binding(await self._forced(use, is_begun=True))
        constraint = None
        if request.grammar is not None:
            constraint = await self._constraint(request.grammar, use)
        return Binding(constraint, thinks_first=thinks and constraint is not None)

    async def _constraint(self, grammar: Grammar, use: ToolUse | None) -> Any:
        """Returns what binds answers to a grammar, or to calls where there are tools; compiled."""
        bound = await self._compile(grammar)
        form = self.tokenizer.tooling.form
        if use is None or grammar.kind not in JSON_KINDS or not form.is_bindable:
            return bound
        try:
            return await self._compile(with_calls(grammar, use, form))
        except _NOT_BOUND as error:
            logger.debug("an answer is bound to JSON without calls: %s", error)
            return bound

    async def _forced(self, use: ToolUse, *, is_begun: bool) -> Any:
        """Returns what binds an answer to a call; None where the model or a schema cannot be.

        Args:
            use: The request's tools.
            is_begun: Whether the prompt begins the call.
        """
        form, limits = self.tokenizer.tooling.form, self._instance.config.serving.limits
        if not (self.abilities.takes_constraint and form.is_bindable):
            return None
        if not use.fits(limits.max_schema_bytes):
            logger.debug("a forced call is not bound: its tools are larger than max_schema_bytes")
            return None
        try:
            if is_begun and form.arguments and (use.name or not form.head):
                return await self._compile(use.grammar(form.arguments))
            begun = form.opening(use.name) if is_begun else ""
            return await self._compile(calls_alone(use, form, begun))
        except _NOT_BOUND as error:
            logger.debug("a forced call is not bound: %s", error)
            return None

    async def _compile(self, grammar: Grammar) -> Any:
        if self._compiler is None:
            model = self._instance.model
            self._compiler = ConstraintCompiler(
                self._instance.config.serving.limits.model_dump(),
                getattr(model, "tokenizer", None),
                vocab_size=getattr(model, "vocab_size", None),
                end_ids=getattr(model, "end_token_ids", ()),
            )
        return await self._compiler.compile(grammar)

    def close(self) -> None:
        """Ends what compiles grammars."""
        if self._compiler is not None:
            self._compiler.close()

    def _codecs(
        self, request: ChatRequest | CompletionRequest, binding: Binding
    ) -> list[TextCodec]:
        model = self._instance.model
        default = getattr(model, "default_max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        use = request.tool_use
        make: Callable[..., TextCodec] = TextCodec
        if use is not None or self._thinks(request):
            make = partial(ToolCodec, use, thinks_first=binding.thinks_first)
        shared = [SharedPrompt() for _ in request.prompt]
        return [
            make(
                request,
                self.tokenizer,
                default,
                self._instance.label,
                repeats_prompt=getattr(model, "repeats_prompt", True),
                max_model_len=getattr(model, "max_model_len", None),
                part=part,
                constraint=binding.constraint,
                shared=shared[part.prompt],
            )
            for part in parts_of(len(request.prompt), request.n or 1)
        ]

    async def tokenize(self, connection: Connection) -> None:
        """Answers `POST /tokenize`."""
        self._check_tokenizer(connection, "encode", known=self.tokenizer.counts)
        request = await self._named(connection, TokenizeRequest)
        answer = await asyncio.to_thread(tokenize, request, self.tokenizer, self.context_length)
        await connection.reply(answer)

    async def detokenize(self, connection: Connection) -> None:
        """Answers `POST /detokenize`."""
        self._check_tokenizer(connection, "decode", known=self.tokenizer.decodes)
        request = await self._named(connection, DetokenizeRequest)
        await connection.reply(await asyncio.to_thread(detokenize, request, self.tokenizer))

    def _check_tokenizer(self, connection: Connection, method: str, *, known: bool) -> None:
        self._instance.check_task("text-generation", "text routes")
        if not known:
            message = f"cannot answer POST {connection.path}: its class has no `tokenizer.{method}`"
            raise UnsupportedError(f"the model {self._instance.name!r} {message}", param="model")

    async def _named(self, connection: Connection, kind: Any) -> Any:
        request: Any = read_request(kind, await self._fields(connection))
        self._reader.own_name(request.model)
        return request

    def describe(self) -> dict[str, Any]:
        """Returns what the model can do, for its card."""
        return self.abilities.describe(self.tokenizer, self.context_length)

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together that the class takes, where it says so."""
        model = self._instance.model
        length = getattr(model, "context_length", None) or getattr(model, "max_model_len", None)
        return length if isinstance(length, int) else None


@contextmanager
def _named_as_sent(request: ChatRequest | CompletionRequest) -> Iterator[None]:
    """Has a class's errors about its inputs name the fields that the client sent."""
    try:
        yield
    except RequestError as error:
        given = "prompt" if request.messages is None else "messages"
        limit = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        sent = {"text": given, "token_ids": given, "max_new_tokens": limit}.get(error.param or "")
        if sent is not None:
            error.message = error.message.replace(f"`{error.param}`", f"`{sent}`")
            error.param, error.args = sent, (error.message,)
        raise
