"""What a text class can do beyond text in and text out, said by its attributes.

A request for more is refused before the class sees it, in words that name the attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest
from truthgpt_serve.server.text.tokenizer import Tokenizer
from truthgpt_serve.server.thinking_switch import Wish


@dataclass(frozen=True, slots=True)
class Abilities:
    """The attributes of one class; docs/your-own-model.md describes them.

    Attributes:
        accepts_token_ids: `token_ids` may come instead of `text`.
        gives_logprobs: `logprobs` is honored: each item has those of its tokens.
        gives_prompt_logprobs: `prompt_logprobs` is honored, too.
        takes_logit_bias: `logit_bias` is honored.
        takes_stop_token_ids: `stop_token_ids` is honored.
        takes_constraint: `constraint` is honored.
        takes_thoughts: `thoughts` is honored, with a constraint behind them.
    """

    accepts_token_ids: bool = False
    gives_logprobs: bool = False
    gives_prompt_logprobs: bool = False
    takes_logit_bias: bool = False
    takes_stop_token_ids: bool = False
    takes_constraint: bool = False
    takes_thoughts: bool = False

    @classmethod
    def of(cls, model: Any) -> Abilities:
        """Reads the attributes of a loaded class."""
        return cls(*(bool(getattr(model, name, False)) for name in cls.__slots__))

    def describe(self, tokenizer: Tokenizer, context_length: int | None) -> dict[str, Any]:
        """Returns the `capabilities` of the model's card at `/v1/models/{id}`.

        Args:
            tokenizer: The class's tokenizer.
            context_length: Tokens of prompt and answer together, or None.

        Returns:
            `context_length`; whether its template tells it of `tools`; whether answers can be bound
            to `json` schemas; whether tokens have `logprobs`, and those of prompts
            `prompt_logprobs`; whether it takes `token_ids` as prompts, and `logit_bias`; whether
            `images` come in; and whether its `reasoning` comes apart from the answer.
        """
        return {
            "context_length": context_length,
            "tools": tokenizer.tooling.takes_tools,
            "json": self.takes_constraint,
            "logprobs": self.gives_logprobs,
            "prompt_logprobs": self.gives_prompt_logprobs,
            "token_ids": self.accepts_token_ids,
            "logit_bias": self.takes_logit_bias,
            "images": False,
            "reasoning": tokenizer.reasoning is not None,
        }


def find_vocab_size(model: Any) -> int | None:
    """Returns how many tokens a class knows, by its `vocab_size` or its tokenizer, or None."""
    size = getattr(model, "vocab_size", None)
    if isinstance(size, int):
        return size
    tokenizer = getattr(model, "tokenizer", None)
    return len(tokenizer) if isinstance(tokenizer, Sized) else None


def check_abilities(
    request: ChatRequest | CompletionRequest,
    abilities: Abilities,
    tokenizer: Tokenizer,
    vocab_size: int | None = None,
) -> None:
    """Checks that a class can do what a request asks for.

    Args:
        request: The checked request.
        abilities: What the class says of itself.
        tokenizer: The class's tokenizer.
        vocab_size: How many tokens it knows, or None.

    Raises:
        UnsupportedError: It cannot; `param` names the field.
        RequestError: A token is none of the model's.
    """
    _check_logprobs(request, abilities)
    if (grammar := request.grammar) is not None and not abilities.takes_constraint:
        what = "answers in plain text only: nothing can bind its answers to a form"
        raise _cannot(grammar.param, what, "takes_constraint")
    thinking = None if request.thinking_token_budget is None else tokenizer.reasoning
    is_unbound = not abilities.takes_thoughts or (thinking is not None and not thinking.binds)
    if request.thinking_token_budget is not None and is_unbound:
        raise _cannot("thinking_token_budget", "has no bound on thoughts", "takes_thoughts")
    if request.logit_bias and not abilities.takes_logit_bias:
        raise _cannot("logit_bias", "changes no logits", "takes_logit_bias")
    if request.stop_token_ids and not abilities.takes_stop_token_ids:
        raise _cannot("stop_token_ids", "ends at its own tokens alone", "takes_stop_token_ids")
    has_ids = any(not isinstance(prompt, str) for prompt in request.prompt)
    if has_ids and not abilities.accepts_token_ids:
        raise _cannot("prompt", "takes texts, not token ids", "accepts_token_ids")
    if request.suffix:
        _check_suffix(tokenizer, has_ids=has_ids)
    if vocab_size is not None:
        _check_tokens(request, vocab_size)


def thinking_fields(
    wish: Wish, given: Mapping[str, Any], abilities: Abilities, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Returns the fields of a chat request that tell a class of thoughts, as far as it knows any.

    Args:
        wish: What is said of them.
        given: The chat template's variables in the request, which count more.
        abilities: What the class says of itself.
        tokenizer: The class's tokenizer.
    """
    variables = tokenizer.thinking.variables(wish, given)
    fields: dict[str, Any] = {"chat_template_kwargs": variables} if variables else {}
    thinking = tokenizer.reasoning
    is_bound = abilities.takes_thoughts and thinking is not None and thinking.binds
    if is_bound and wish.max_tokens is not None:
        fields["thinking_token_budget"] = wish.max_tokens
    return fields


def _check_tokens(request: ChatRequest | CompletionRequest, vocab_size: int) -> None:
    check_largest("logit_bias", max(request.logit_bias, default=-1), vocab_size)
    check_largest("stop_token_ids", max(request.stop_token_ids, default=-1), vocab_size)
    for prompt in request.prompt:
        if not isinstance(prompt, str):
            check_largest("prompt", max(prompt), vocab_size)


def check_largest(param: str, token: int, vocab_size: int) -> None:
    """Checks the largest token id of a field. Raises RequestError."""
    if token >= vocab_size:
        message = f"has {token}, but the model's vocabulary has {vocab_size} tokens, from 0"
        raise bad_field(param, message)


def _check_logprobs(request: ChatRequest | CompletionRequest, abilities: Abilities) -> None:
    if request.num_logprobs is not None:
        if not abilities.gives_logprobs:
            raise _cannot("logprobs", "gives no log probabilities", "gives_logprobs")
        if request.echo and not abilities.gives_prompt_logprobs:
            what = "gives no log probabilities of prompts: leave `echo` or `logprobs` out"
            raise _cannot("echo", what, "gives_prompt_logprobs")


def _check_suffix(tokenizer: Tokenizer, *, has_ids: bool) -> None:
    if tokenizer.infilling is None:
        what = "inserts no text before a suffix: its tokenizer has no tokens for that"
        raise UnsupportedError(f"`suffix` is set, but this model {what}", param="suffix")
    if has_ids:
        what = "must come with a prompt as text, not as token ids"
        raise UnsupportedError(f"`suffix` {what}", param="suffix")


def _cannot(param: str, what: str, attribute: str) -> UnsupportedError:
    return UnsupportedError(
        f"`{param}` is set, but this model {what} (its class does not say `{attribute} = True`)",
        param=param,
    )
