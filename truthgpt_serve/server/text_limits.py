"""Checks what a request for text or embeddings asks for against `serving.limits`, field by field.

Fields have the same meaning on all routes, so they are checked by name; `input` alone depends on
the route. Values of a wrong type are left to the route, but a number in quotes counts as one,
because vLLM reads it so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import RequestError
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.server.text_sizes import check_arguments, check_tokenized, leaves
from truthgpt_serve.wording import shown

Body = Mapping[str, Any]

CONVERSATION_ROUTES = ("/v1/responses",)
"""Routes whose `input` is a conversation; elsewhere it is texts."""

MAX_DEPTH = 200
"""Lists and objects in each other."""

DEFAULT_TOKENS = 8192
"""Counted for an answer whose length the request does not limit."""

CHARACTERS_A_TOKEN = 4
"""About, where a text is not tokenized."""

LOGPROBS_A_TOKEN = 4
"""Log probabilities of a request for several answers for each token that it may make: each takes
some hundred bytes of memory."""

COMPLETION_ROUTE, COMPLETION_TOKENS = "/v1/completions", 16
"""The route of OpenAI's that has a default of `max_tokens`, and the default."""

_DIGITS_AS_ZEROS = bytes(ord("0") if chr(code).isdigit() else ord(" ") for code in range(128)) + (
    b" " * 128
)
_LONG_NUMBER = b"0" * 19
"""How an integer that may have over 64 bits looks then; much faster to find than a pattern."""
_INTEGERS = range(-(2**63), 2**64)


class TextLimits:
    """The limits of one model.

    Args:
        limits: `serving.limits`.
        max_model_len: The model's length in tokens.
        vocab_size: The model's vocabulary.
    """

    def __init__(
        self,
        limits: TextLimitsSection,
        max_model_len: int = sys.maxsize,
        vocab_size: int = sys.maxsize,
    ) -> None:
        self._limits = limits.model_dump()
        self._max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._checks: dict[str, Callable[[Any, str], None]] = {
            **dict.fromkeys(("n", "best_of"), self._number("max_n")),
            "prompt": self._prompts,
            "messages": self._messages,
            "system": self._size("max_messages"),
            "input": self._size("max_inputs"),
            **dict.fromkeys(_TEXTS, self._size("max_inputs")),
            **dict.fromkeys(_LOGPROBS, self._logprobs),
            **dict.fromkeys(("stop", "stop_sequences", "stop_token_ids"), self._stops),
            **dict.fromkeys(("logit_bias", "bad_words"), self._size("max_logit_bias")),
            **dict.fromkeys(("allowed_token_ids", "label_token_ids"), self._token_ids),
            **dict.fromkeys(("tools", "functions"), self._size("max_tools")),
            "sampling_params": self._sampling_params,
        }

    def check(self, path: str, raw: bytes | bytearray, body: Body) -> None:
        """Checks one request.

        Args:
            path: The route.
            raw: The body's bytes.
            body: The body.

        Raises:
            RequestError: A field asks for more than a limit; `param` names it.
        """
        check_shape(raw, body)
        check_tokenized(path, raw, body, self._max_model_len)
        for name in body.keys() & self._checks.keys():
            if name == "input" and path in CONVERSATION_ROUTES:
                self._messages(body[name], name)
            else:
                self._checks[name](body[name], name)
        if path == COMPLETION_ROUTE and "max_tokens" not in body:
            self._check_total(body, COMPLETION_TOKENS)
        else:
            self._check_total(body)

    def _refuse(self, key: str, param: str, count: str) -> RequestError:
        limit = self._limits[key]
        return bad_field(
            param, f"{count}, but this model takes at most {limit} (`serving.limits.{key}`)"
        )

    def _number(self, key: str) -> Callable[[Any, str], None]:
        def check(value: Any, param: str) -> None:
            number = as_number(value)
            if number is not None and number > self._limits[key]:
                raise self._refuse(key, param, f"is {shown(value)}")

        return check

    def _size(self, key: str) -> Callable[[Any, str], None]:
        def check(value: Any, param: str) -> None:
            if isinstance(value, (list, dict)) and len(value) > self._limits[key]:
                if param == "input" and _is_numbers(value):
                    return  # the token ids of one text, which the model's length bounds
                raise self._refuse(key, param, f"has {len(value)} entries")

        return check

    def _stops(self, value: Any, param: str) -> None:
        self._size("max_stop_strings")(value, param)

    def _prompts(self, value: Any, param: str) -> None:
        if isinstance(value, list) and len(value) > self._limits["max_prompts"]:
            if _is_numbers(value):
                return
            raise self._refuse("max_prompts", param, f"has {len(value)} prompts")

    def _messages(self, value: Any, param: str) -> None:
        if not isinstance(value, list):
            return
        if value and isinstance(value[0], list):
            if len(value) > self._limits["max_prompts"]:
                raise self._refuse("max_prompts", param, f"has {len(value)} conversations")
            for index, conversation in enumerate(value):
                self._messages(conversation, f"{param}[{index}]")
            return
        count = len(value)
        for index, message in enumerate(value):
            check_arguments(message, f"{param}[{index}]")
            content = message.get("content") if isinstance(message, dict) else None
            count += len(content) if isinstance(content, list) else 0
        if count > self._limits["max_messages"]:
            raise self._refuse("max_messages", param, f"has {count} messages and parts")

    def _logprobs(self, value: Any, param: str) -> None:
        number = as_number(value)
        if number is None:
            return
        count = "is -1, the whole vocabulary" if number == -1 else f"is {shown(value)}"
        if (self._vocab_size if number == -1 else number) > self._limits["max_logprobs"]:
            raise self._refuse("max_logprobs", param, count)

    def _token_ids(self, value: Any, param: str) -> None:
        if isinstance(value, list) and len(value) > self._vocab_size:
            raise bad_field(param, f"has {len(value)} entries, more than the vocabulary")

    def _sampling_params(self, value: Any, param: str) -> None:
        """Checks the fields of a route for tokens in and out."""
        if not isinstance(value, dict):
            return
        for name in value.keys() & self._checks.keys():
            self._checks[name](value[name], f"{param}.{name}")
        self._check_total(value)

    def _check_total(self, body: Body, default: int = DEFAULT_TOKENS) -> None:
        answers = max(as_number(body.get(name)) or 1 for name in ("n", "best_of"))
        prompts = _count_prompts(body)
        if answers * prompts <= 1:
            return
        given_tokens = [number for _, number in _given_tokens(body)]
        tokens = min(max(given_tokens, default=default), self._max_model_len)
        total = answers * prompts * tokens
        if total > self._limits["max_total_tokens"]:
            param, given = next(iter(_given_tokens(body)), ("n", None))
            counted = "" if given is not None else " (counted, as none is given)"
            raise bad_field(
                param,
                f"makes {int(total)} tokens: {prompts} prompts with {int(answers)} answers of "
                f"{int(tokens)} tokens{counted}; this model makes at most "
                f"{self._limits['max_total_tokens']} for a request "
                "(`serving.limits.max_total_tokens`)",
            )
        self._check_total_logprobs(body, answers, total)

    def _check_total_logprobs(self, body: Body, answers: float, num_tokens: float) -> None:
        """Checks how many log probabilities a request for several answers makes.

        Args:
            body: The request.
            answers: How many there are to each prompt.
            num_tokens: The most tokens of all answers.
        """
        given = {name: as_number(body.get(name)) for name in _LOGPROBS}
        wanted = {name: number for name, number in given.items() if number is not None}
        if not any(body.get(name) is not False for name in wanted):
            return
        if body.get("echo") or "prompt_logprobs" in wanted:
            num_tokens += answers * _count_prompt_tokens(body)
        most = max(self._vocab_size if number == -1 else number for number in wanted.values())
        total = num_tokens * (1 + most)
        limit = LOGPROBS_A_TOKEN * self._limits["max_total_tokens"]
        if total > limit:
            raise bad_field(
                next(iter(wanted)),
                f"makes {int(total)} log probabilities: of {int(num_tokens)} tokens with the "
                f"{int(most)} likeliest beside each; this model makes at most {limit} for a "
                f"request, {LOGPROBS_A_TOKEN} times `serving.limits.max_total_tokens`",
            )


_TEXTS = (
    *("documents", "queries", "items", "texts", "inputs", "images"),
    *("text_1", "text_2", "data_1", "data_2"),
)
"""Fields with the texts of routes for embeddings, classes, scores and rankings."""

_LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def as_number(value: Any) -> float | None:
    """Returns what a lenient reader takes for a number, or None for anything else."""
    if isinstance(value, str):
        try:
            return float(value.strip().replace("_", ""))
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) else None


def check_shape(raw: bytes | bytearray, body: Body) -> None:
    """Checks what can be wrong in any field: integers that nothing can carry, and nesting.

    Raises:
        RequestError: An integer has over 64 bits, or values are nested too deeply.
    """
    if _LONG_NUMBER in raw.translate(_DIGITS_AS_ZEROS):
        for name, value in body.items():
            for leaf in leaves(value):
                if isinstance(leaf, int) and leaf not in _INTEGERS:
                    # The words in brackets are pydantic's, as vLLM's own server answers.
                    rule = "less_than_equal 2^64 - 1" if leaf > 0 else "greater_than_equal -2^63"
                    raise bad_field(name, f"holds an integer of more than 64 bits ({rule})")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        for name, value in body.items():
            if _is_deep(value, MAX_DEPTH):
                raise bad_field(name, f"is nested deeper than {MAX_DEPTH} levels")


def _is_deep(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return False
    return True


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and isinstance(value[0], (int, float))


def _count_prompts(body: Body) -> int:
    for name in ("prompt", "messages", "prompt_embeds"):
        value = body.get(name)
        if isinstance(value, list) and value and isinstance(value[0], (str, list)):
            return len(value)
    return 1


def _count_prompt_tokens(body: Body) -> int:
    """Returns the tokens of all prompts, about where they are texts."""
    value = body.get("prompt")
    prompts = value if isinstance(value, list) else [value]
    if prompts and isinstance(prompts[0], (int, float)):
        return len(prompts)
    texts = (len(one) // CHARACTERS_A_TOKEN for one in prompts if isinstance(one, str))
    return sum(texts) + sum(len(one) for one in prompts if isinstance(one, list))


def _given_tokens(body: Body) -> Iterator[tuple[str, float]]:
    for name in _TOKENS:
        number = as_number(body.get(name))
        if number is not None:
            yield name, number
