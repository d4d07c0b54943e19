"""A class's tokenizer: counts, encodes, decodes and renders chats, as far as it can."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import Any

from truthgpt_serve.errors import ContextLengthError, RequestError, UnsupportedError
from truthgpt_serve.server.template_options import known_options
from truthgpt_serve.server.text.chat_template import ChatTemplate, TextTemplate
from truthgpt_serve.server.text.messages import ChatMessage
from truthgpt_serve.server.text.reasoning import Thinking, find_reasoning
from truthgpt_serve.server.text.tools.prompt import ToolTemplate, with_one_type
from truthgpt_serve.server.text.tools.template_form import Apply
from truthgpt_serve.server.text_sizes import check_beginning
from truthgpt_serve.server.thinking_switch import ThinkingSwitch

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 1 << 18
"""Most texts of single tokens that are kept."""
_INFILLING = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
)
"""Tokens by which models know what to write between a prompt and a suffix."""


class Tokenizer:
    """What is asked of a class's `tokenizer` attribute, each part of which may be missing.

    Attributes:
        tooling: What its chat template knows of tools.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        encode = getattr(tokenizer, "encode", None)
        self._encode = encode if callable(encode) else None
        template = getattr(tokenizer, "apply_chat_template", None)
        has_one = getattr(tokenizer, "chat_template", "") is not None
        self._template = TextTemplate(template) if callable(template) and has_one else None
        self._chat = ChatTemplate(self._template)
        self.tooling = ToolTemplate(self._template)
        self._special = self._encode is not None and _takes(encode, "add_special_tokens")
        decode = getattr(tokenizer, "decode", None)
        self._decode = decode if callable(decode) else None
        self._texts: dict[int, str] = {}
        self._warned = False

    @classmethod
    def of(cls, model: Any) -> Tokenizer:
        """Returns that of a loaded class."""
        return cls(getattr(model, "tokenizer", None))

    @property
    def counts(self) -> bool:
        """Whether it can count tokens."""
        return self._encode is not None

    @property
    def has_template(self) -> bool:
        """Whether `render` uses a chat template."""
        return self._template is not None

    @property
    def decodes(self) -> bool:
        """Whether it can turn token ids into a text."""
        return self._decode is not None

    @cached_property
    def reasoning(self) -> Thinking | None:
        """How its answers think before they answer, as `find_reasoning` says, or None."""
        get = getattr(self._tokenizer, "get_vocab", None)
        if self._template is None or not callable(get):
            return None
        try:
            return find_reasoning(self._template, get())
        except Exception:  # templates raise what they like
            return None

    @cached_property
    def thinking(self) -> ThinkingSwitch:
        """What its chat template is told of thoughts."""
        return ThinkingSwitch(self._render_briefly)

    def _render_briefly(self, options: Mapping[str, Any]) -> str:
        try:
            return self.render([{"role": "user", "content": "x"}], options=options)
        except Exception:  # templates raise what they like about what they do not take
            return ""

    def token_id(self, text: str) -> int:
        """Returns the number of a token that the vocabulary has."""
        return int(self._tokenizer.get_vocab()[text])

    @cached_property
    def infilling(self) -> tuple[str, str, str] | None:
        """The tokens before the prompt, before the suffix and before what comes between, or None.

        Bavarian et al., 2022, "Efficient Training of Language Models to Fill in the Middle".
        """
        get = getattr(self._tokenizer, "get_vocab", None)
        vocabulary = get() if callable(get) else {}
        return next(
            (names for names in _INFILLING if all(map(vocabulary.__contains__, names))), None
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Returns the token ids of a text.

        Args:
            text: The text.
            special: As for `count`.

        Raises:
            UnsupportedError: The class has no tokenizer that encodes.
        """
        if self._encode is None:
            raise UnsupportedError("this model has no tokenizer with `encode`", param="model")
        options = {"add_special_tokens": special} if self._special else {}
        try:
            return [int(token) for token in self._encode(text, **options)]
        except ValueError as error:
            message = "the tokenizer of this model gives no numbers for tokens"
            raise UnsupportedError(message, param="model") from error

    def decode(self, tokens: list[int]) -> str:
        """Returns the text of token ids, special tokens included.

        Raises:
            UnsupportedError: The class has no tokenizer that decodes.
            RequestError: A token is none of the tokenizer's.
        """
        if self._decode is None:
            raise UnsupportedError("this model has no tokenizer with `decode`", param="model")
        try:
            return str(self._decode(tokens))
        except (IndexError, KeyError, OverflowError, TypeError) as error:
            raise RequestError(f"`tokens` cannot be decoded: {error}", param="tokens") from error

    def token_text(self, token: int) -> str:
        """Returns the text of one token; remembered, since answers repeat them."""
        text = self._texts.get(token)
        if text is None:
            text = self.decode([token]) if self._decode is not None else str(token)
            if len(self._texts) < MAX_REMEMBERED:
                self._texts[token] = text
        return text

    def render(
        self,
        messages: list[ChatMessage],
        tools: list[dict[str, Any]] | None = None,
        *,
        goes_on: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the prompt of a chat; see `ChatTemplate.render`.

        Args:
            messages: The chat.
            tools: What the model may call, told by the template, or else in words; so are the
                calls and results of the chat.
            goes_on: Whether the answer goes on with the last message, which is the assistant's.
            options: What the template is told beside; what it cannot take is left out.
        """
        template: Apply | None = self._template
        chat = self._chat
        if options and template is not None:
            known = known_options(self._tokenizer.apply_chat_template, options)
            template = partial(template, **known)
            chat = ChatTemplate(template)
        if tools and not (template is not None and self.tooling.takes_tools):
            return _render(chat, self.tooling.in_words(messages, tools), goes_on=goes_on)
        if not tools or template is None:
            return self._render_told(chat, messages, goes_on=goes_on)
        told = ChatTemplate(partial(template, tools=tools))
        try:
            return self._render_told(told, messages, goes_on=goes_on)
        except RequestError:
            if (named := with_one_type(tools)) == tools:
                raise
            told = ChatTemplate(partial(template, tools=named))
            with suppress(RequestError):
                return self._render_told(told, messages, goes_on=goes_on)
            raise

    def _render_told(
        self, told: ChatTemplate, messages: list[ChatMessage], *, goes_on: bool
    ) -> str:
        """Renders a chat; calls and results that the template has no place for, in words."""
        try:
            return _render(told, messages, goes_on=goes_on)
        except RequestError:
            if not any("tool_calls" in one or one["role"] == "tool" for one in messages):
                raise
            with suppress(RequestError):
                return _render(told, self.tooling.in_words(messages, []), goes_on=goes_on)
            raise

    def check(self, text: str, limit: int, *, special: bool, param: str, answer: int = 0) -> int:
        """Returns how many tokens of a limit are left behind a text.

        Args:
            text: The text.
            limit: The most tokens that the model takes.
            special: As for `count`.
            param: The request's field, for the error.
            answer: Tokens that the answer needs at least.

        Raises:
            ContextLengthError: There are too few; never where the tokens cannot be counted.
        """
        check_beginning(
            text, limit, lambda part: self.count(part, special=special) or 0, param=param
        )
        num_tokens = self.count(text, special=special)
        if num_tokens is None:
            return limit
        if num_tokens + answer > limit:
            raise ContextLengthError(limit, num_tokens + answer, param=param)
        return limit - num_tokens

    def count(self, text: str, *, special: bool = False) -> int | None:
        """Returns the number of tokens, or None when the tokenizer fails or is missing.

        Args:
            text: The text to count.
            special: Whether the tokens that the tokenizer adds in front of a prompt count.
        """
        if self._encode is None:
            return None
        try:
            if self._special:
                return len(self._encode(text, add_special_tokens=special))
            return len(self._encode(text))
        except Exception:
            if not self._warned:
                logger.exception("the tokenizer cannot count tokens: answers carry no usage")
            self._warned = True
            return None


def _render(template: ChatTemplate, messages: list[ChatMessage], *, goes_on: bool) -> str:
    return template.render_open(messages) if goes_on else template.render(messages)


def _takes(function: Any, parameter: str) -> bool:
    try:
        return parameter in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
