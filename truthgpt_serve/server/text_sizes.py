"""Refuses texts that take long to read: for a tokenizer, and for what reads JSON within a text.

A tokenizer reads about 1 MB in a second, and other requests wait for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from truthgpt_serve.errors import ContextLengthError
from truthgpt_serve.request_schema import bad_field

BEGINNING = 8
"""Characters for each token that a model takes: a text with more of them is first read so far."""
SHORT_TEXT = 1 << 15

MAX_TOKEN_CHARACTERS, MAX_WORD = 32, 1 << 20
"""The same, and no text may have more than that and than so many: many tokenizers make one token of
the longest word."""

MAX_CHARACTERS = 1 << 22
"""Most characters of a request whose texts are tokenized whatever their length."""

MAX_DEPTH = 200
"""Lists and objects in each other, in the arguments of a call."""

TOKENIZE = "/tokenize"
PAIR_ROUTES = ("/v1/score", "/score", "/v1/rerank", "/rerank")
"""Routes that may read each query with each of its documents."""
_QUERIES = ("query", "queries", "text_1", "data_1")
_DOCUMENTS = ("documents", "items", "text_2", "data_2")
_TRUNCATED = "truncate_prompt_tokens"
_CUTS = (_TRUNCATED, "max_tokens_per_doc", "max_tokens_per_query")
"""Fields that cut a text behind what the model reads, once all of it is tokenized."""
_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_STEPS = {"{": 1, "[": 1, "}": -1, "]": -1}


def check_beginning(text: str, limit: int, count: Callable[[str], int], *, param: str) -> None:
    """Refuses a text whose beginning alone is too long: a tokenizer reads about 1 MB in a second.

    Args:
        text: The text.
        limit: The most tokens that the model takes.
        count: Returns the number of tokens of a text.
        param: The request's field.

    Raises:
        ContextLengthError: A part of it has clearly more tokens than the limit.
        RequestError: It has few tokens, and still takes too long to read.
    """
    most = max(limit * MAX_TOKEN_CHARACTERS, MAX_WORD)
    size = max(limit * BEGINNING, SHORT_TEXT)
    while size < min(len(text), most):
        num_tokens = count(text[:size])
        if num_tokens > limit + limit // 4:  # what is cut within a word may have a few more
            advice = (
                "They are those of its beginning alone. Please reduce the length of the prompt."
            )
            raise ContextLengthError(limit, num_tokens, param=param, advice=advice)
        size *= BEGINNING
    if len(text) > most:
        raise bad_field(param, f"has {len(text)} characters, but at most {most} are tokenized")


def check_cut(num_characters: int) -> None:
    """Refuses texts that are cut behind what the model reads, if the tokenizer must read too much.

    Args:
        num_characters: All that it must read.

    Raises:
        RequestError: They are too long.
    """
    if num_characters > MAX_CHARACTERS:
        most = f"at most {MAX_CHARACTERS} are tokenized at once"
        raise bad_field(_TRUNCATED, f"is set for texts of {num_characters} characters, but {most}")


def check_tokenized(
    path: str, raw: bytes | bytearray, body: Mapping[str, Any], max_model_len: int
) -> None:
    """Checks the length of texts that the model's length does not bound.

    Args:
        path: The route.
        raw: The body's bytes.
        body: The body.
        max_model_len: The model's length in tokens.

    Raises:
        RequestError: They are only counted, or cut behind what the model reads, and too long.
    """
    if path in PAIR_ROUTES:
        _check_pairs(body, max_model_len)
        return
    truncated = body.get(_TRUNCATED) is not None
    if len(raw) <= MAX_CHARACTERS or not (truncated or path == TOKENIZE):
        return
    size = sum(len(leaf) for leaf in leaves(body) if isinstance(leaf, str))
    if truncated:
        check_cut(size)
    elif size > MAX_CHARACTERS:
        param = "prompt" if "prompt" in body else "messages"
        most = f"has {size} characters, but at most {MAX_CHARACTERS} are tokenized at once"
        raise bad_field(param, most)


def _check_pairs(body: Mapping[str, Any], max_model_len: int) -> None:
    """Checks queries with their documents: a query is tokenized again with each of them."""
    _, queries = _sizes(body, _QUERIES)
    param, documents = _sizes(body, _DOCUMENTS)
    if param not in body:
        return  # the route says what is missing
    if len(queries) == 1:
        queries *= len(documents)
    pairs = list(map(sum, zip(queries, documents, strict=False)))
    total = sum(pairs)
    if total <= MAX_CHARACTERS:
        return
    if cut := next((name for name in _CUTS if body.get(name) is not None), None):
        most = f"at most {MAX_CHARACTERS} are tokenized at once"
        size = f"{total} characters, the query counted with each document"
        raise bad_field(cut, f"is set for texts of {size}, but {most}")
    longest, most_of_one = max(pairs), max_model_len * MAX_TOKEN_CHARACTERS
    if longest > most_of_one:
        place = f"{param}[{pairs.index(longest)}]" if isinstance(body[param], list) else param
        size = f"has {longest} characters with its query"
        raise bad_field(place, f"{size}, but at most {most_of_one} are tokenized")


def _sizes(body: Mapping[str, Any], names: Sequence[str]) -> tuple[str, list[int]]:
    """Returns which of some fields a body has, and the characters of each text in it."""
    name = next((name for name in names if name in body), names[0])
    value = body.get(name)
    return name, [_size(text) for text in (value if isinstance(value, list) else [value])]


def _size(text: Any) -> int:
    if isinstance(text, dict):
        parts = text.get("content")
        parts = parts if isinstance(parts, list) else []
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        return sum(len(part) for part in texts if isinstance(part, str))
    return len(text) if isinstance(text, str) else 0


def leaves(value: Any) -> Iterator[Any]:
    """Yields all values in lists and objects, however deep, that are neither."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        else:
            yield value


def check_arguments(message: Any, place: str) -> None:
    """Checks how deep the arguments of calls are nested: texts, which a body's depth leaves out.

    Args:
        message: One of a chat, or an item of a Responses request.
        place: Where it is.

    Raises:
        RequestError: Lists or objects are nested deeper than `MAX_DEPTH`.
    """
    if not isinstance(message, dict):
        return
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        for index, call in enumerate(calls):
            if isinstance(call, dict):
                _check_call(call.get("function"), f"{place}.tool_calls[{index}].function")
    _check_call(message.get("function_call"), f"{place}.function_call")
    _check_call(message, place)


def _check_call(call: Any, place: str) -> None:
    text = call.get("arguments") if isinstance(call, dict) else None
    if not isinstance(text, str) or text.count("{") + text.count("[") <= MAX_DEPTH:
        return
    marks = re.findall(r"[\[\]{}]", _STRING.sub("", text))
    if max(accumulate(map(_STEPS.__getitem__, marks)), default=0) > MAX_DEPTH:
        raise bad_field(f"{place}.arguments", f"is nested deeper than {MAX_DEPTH} levels")
