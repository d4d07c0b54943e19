"""What a text model can do, for its card at `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.server.text.abilities import Abilities
from truthgpt_serve.server.text.tokenizer import Tokenizer


def describe(
    abilities: Abilities, tokenizer: Tokenizer, context_length: int | None
) -> dict[str, Any]:
    """Returns the card's `capabilities`.

    Args:
        abilities: What the class says that it can do.
        tokenizer: Its tokenizer.
        context_length: Tokens of prompt and answer together, or None.

    Returns:
        `context_length`; whether its template tells it of `tools`; whether answers can be bound to
        `json` schemas; whether tokens have `logprobs`, and those of prompts `prompt_logprobs`;
        whether it takes `token_ids` as prompts, and `logit_bias`; whether `images` come in; and
        whether its `reasoning` comes apart from the answer.
    """
    return {
        "context_length": context_length,
        "tools": tokenizer.tooling.takes_tools,
        "json": abilities.takes_constraint,
        "logprobs": abilities.gives_logprobs,
        "prompt_logprobs": abilities.gives_prompt_logprobs,
        "token_ids": abilities.accepts_token_ids,
        "logit_bias": abilities.takes_logit_bias,
        "images": False,
        "reasoning": tokenizer.reasoning is not None,
    }
