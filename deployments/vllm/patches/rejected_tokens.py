"""Answers 400 to a request whose grammar and other constraints leave no token to choose.

The engine then samples a token that the grammar rejects and ends the request, which vLLM answers
with 500 as if it had failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import VLLMValidationError

from deployments.vllm.patches.methods import replace_method

MESSAGE = (
    "the structured output and the other constraints of the request (`allowed_token_ids`, "
    "`bad_words`, `min_tokens`, `logit_bias`) leave no token to choose: drop one of them"
)


def mend_answers() -> None:
    """Has vLLM's routes of this process refuse what the engine could not go on with.

    Raises:
        RuntimeError: vLLM moved the method.
    """
    replace_method(
        GenerateBaseServing, "_raise_if_error", ("finish_reason", "request_id"), _wrap_raise
    )


def _wrap_raise(original: Callable[..., Any]) -> Callable[..., Any]:
    def raise_if_error(self: Any, finish_reason: str | None, request_id: str) -> None:
        # With transfer of KV caches, a transfer that failed ends a request so too.
        config = self.engine_client.vllm_config
        if finish_reason == "error" and config.kv_transfer_config is None:
            raise VLLMValidationError(MESSAGE, parameter="structured_outputs")
        original(self, finish_reason, request_id)

    return raise_if_error
