"""What a text class can do beyond text in and text out, said by its attributes.

A request for more is refused before the class sees it, in words that name the attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from truthgpt_serve.errors import UnsupportedError
from truthgpt_serve.server.text.request import ChatRequest, CompletionRequest
from truthgpt_serve.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Abilities:
    """The attributes of one class; docs/your-own-model.md describes them.

    Attributes:
        accepts_token_ids: `token_ids` may come instead of `text`.
        gives_logprobs: `logprobs` is honored: each item has those of its tokens.
        gives_prompt_logprobs: `prompt_logprobs` is honored, too.
        takes_logit_bias: `logit_bias` is honored.
        takes_constraint: `constraint` is honored.
        takes_thoughts: `thoughts` is honored, with a constraint behind them.
    """

    accepts_token_ids: bool = False
    gives_logprobs: bool = False
    gives_prompt_logprobs: bool = False
    takes_logit_bias: bool = False
    takes_constraint: bool = False
    takes_thoughts: bool = False

    @classmethod
    def of(cls, model: Any) -> Abilities:
        """Reads the attributes of a loaded class."""
        return cls(*(bool(getattr(model, name, False)) for name in cls.__slots__))


def check_abilities(
    request: ChatRequest | CompletionRequest, abilities: Abilities, tokenizer: Tokenizer
) -> None:
    """Checks that a class can do what a request asks for.

    Raises:
        UnsupportedError: It cannot; `param` names the field.
    """
    if request.num_logprobs is not None:
        if not abilities.gives_logprobs:
            raise _cannot("logprobs", "gives no log probabilities", "gives_logprobs")
        if request.echo and not abilities.gives_prompt_logprobs:
            what = "gives no log probabilities of prompts: leave `echo` or `logprobs` out"
            raise _cannot("echo", what, "gives_prompt_logprobs")
    if (grammar := request.grammar) is not None and not abilities.takes_constraint:
        what = "answers in plain text only: nothing can bind its answers to a form"
        raise _cannot(grammar.param, what, "takes_constraint")
    thinking = None if request.thinking_token_budget is None else tokenizer.reasoning
    is_unbound = not abilities.takes_thoughts or (thinking is not None and not thinking.binds)
    if request.thinking_token_budget is not None and is_unbound:
        raise _cannot("thinking_token_budget", "has no bound on thoughts", "takes_thoughts")
    if request.logit_bias and not abilities.takes_logit_bias:
        raise _cannot("logit_bias", "changes no logits", "takes_logit_bias")
    has_ids = any(not isinstance(prompt, str) for prompt in request.prompt)
    if has_ids and not abilities.accepts_token_ids:
        raise _cannot("prompt", "takes texts, not token ids", "accepts_token_ids")
    if request.suffix:
        _check_suffix(tokenizer, has_ids=has_ids)


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
