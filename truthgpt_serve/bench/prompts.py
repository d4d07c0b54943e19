"""The requests of a measurement: random, fixed, or from a file; a seed gives the same ones."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.target import BenchError

MAX_ROWS = 100_000
"""Requests that are read from a file; more are left out."""
_WORDS = """
a about above add after again air all almost along also always an and animal another answer
any are around as ask at away back be because been before began begin being below between big
book both boy but by call came can car carry change city close come could country cut day did
different do does done down each earth eat end enough even every example eye face family far
father feet few find first follow food for form found four from get girl give go good got great
group grow had hand hard has have he head hear help her here high him his home house how if
important in into is it its just keep kind know land large last late learn leave left let letter
life light like line list little live long look made make man many may me mean men might miss
more most mother move much must my name near need never new next night no not now number of off
often old on once one only open or other our out over own page paper part people place plant
play point put question quick read really right river run said same saw say school sea second
see seem sentence set she should show side small so some something song soon sound spell start
state still stop story study such take talk tell than that the their them then there these they
thing think this those thought three through time to together too took tree try turn two under
until up us use very walk want was watch water way we well went were what when where which while
white who why will with without word work world would write year you young your
"""
WORDS = tuple(_WORDS.split())


class RandomPrompts:
    """Makes prompts of random words, or of random token ids that the server knows.

    Args:
        token_ids: Ids to choose from, for prompts that are lists of ids.
        words_per_token: How many words make a token, where lengths are in tokens.
    """

    def __init__(self, token_ids: Sequence[int] = (), words_per_token: float = 1.0) -> None:
        self._token_ids = tuple(token_ids)
        self._words_per_token = words_per_token

    def make(self, rng: random.Random, length: int) -> str | list[int]:
        """Returns one prompt of so many tokens or words."""
        if self._token_ids:
            return rng.choices(self._token_ids, k=length)
        return " ".join(rng.choices(WORDS, k=max(1, round(length * self._words_per_token))))

    def make_blocks(self, block_ids: Sequence[Any], length: int, block: int) -> str | list[int]:
        """Returns a prompt whose blocks are the same wherever their ids are: shared prefixes."""
        prompt: list[Any] = []
        num_units = max(1, round(length * self._words_per_token))
        for block_id in block_ids:
            rng = random.Random(f"block {block_id}")
            prompt += rng.choices(self._token_ids or WORDS, k=block)
        rng = random.Random(f"rest {block_ids}")
        prompt += rng.choices(self._token_ids or WORDS, k=max(0, num_units - len(prompt)))
        prompt = prompt[:num_units]
        return prompt if self._token_ids else " ".join(prompt)


def random_requests(
    prompts: RandomPrompts,
    *,
    input_len: int,
    output_len: int | None,
    range_ratio: float = 0.0,
    lengths_seed: str = "0",
    text_seed: str = "0",
) -> Iterator[Request]:
    """Yields requests without end.

    Args:
        prompts: Makes the prompts.
        input_len: Tokens or words of a prompt.
        output_len: Most tokens of an answer.
        range_ratio: Both lengths are drawn from `[length * (1 - r), length * (1 + r)]`.
        lengths_seed: Decides the lengths.
        text_seed: Decides the words.
    """
    lengths, texts = random.Random(f"lengths {lengths_seed}"), random.Random(f"text {text_seed}")
    while True:
        num = _draw(lengths, input_len, range_ratio)
        limit = None if output_len is None else _draw(lengths, output_len, range_ratio)
        yield Request(prompts.make(texts, num), num, limit)


def _draw(rng: random.Random, length: int, ratio: float) -> int:
    return max(1, rng.randint(round(length * (1 - ratio)), round(length * (1 + ratio))))


def fixed_requests(prompt: str, output_len: int | None) -> Iterator[Request]:
    """Yields the same request without end."""
    return itertools.repeat(Request(prompt, len(prompt.split()), output_len))


def cycle_requests(rows: Sequence[Request], seed: str) -> Iterator[Request]:
    """Yields the rows of a file in random order, again and again."""
    rng = random.Random(f"order {seed}")
    while True:
        yield from rng.sample(rows, len(rows))


def read_dataset(path: Path, output_len: int | None, *, chat: bool) -> list[Request]:
    """Reads JSON Lines of `{"prompt"}` or `{"messages"}`, or conversations in ShareGPT's form.

    Args:
        path: The file.
        output_len: Most tokens of an answer; by default the row's `output_tokens`, else the words
            of the answer in the file.
        chat: Whether requests may carry messages.

    Raises:
        BenchError: The file cannot be read, or a row has neither form.
    """
    rows = []
    for place, row in read_rows(path):
        rows.append(_request_of(row, place, output_len, chat))
        if len(rows) == MAX_ROWS:
            break
    if not rows:
        raise BenchError(f"{path} holds no requests")
    return rows


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the object of each row of JSON Lines or of a JSON array.

    Raises:
        BenchError: The file cannot be read, or a row is no object.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = file.read(1)
            file.seek(0)
            if first == "[":
                values = enumerate(json.load(file), 1)
            else:
                lines = ((at, line) for at, line in enumerate(file, 1) if line.strip())
                values = ((at, json.loads(line)) for at, line in lines)  # type: ignore[assignment]
            for at, value in values:
                if not isinstance(value, dict):
                    raise BenchError(f"{path}:{at}: each row must be a JSON object")
                yield f"{path}:{at}", value
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error


def _request_of(row: dict[str, Any], place: str, output_len: int | None, chat: bool) -> Request:
    prompt, answer = row.get("prompt"), row.get("completion")
    if isinstance(row.get("messages"), list):
        prompt = row["messages"]
    elif isinstance(row.get("conversations"), list):
        prompt, answer = _share_gpt(row["conversations"])
    if not chat:
        prompt = last_text(prompt)
    if not prompt or not isinstance(prompt, str | list):
        raise BenchError(f"{place}: needs a `prompt`, `messages` or `conversations`")
    if output_len is None:
        output_len = row.get("output_tokens") or row.get("output_len")
    if output_len is None and isinstance(answer, str):
        output_len = max(1, len(answer.split()))
    if output_len is not None and (not isinstance(output_len, int) or output_len < 1):
        raise BenchError(f"{place}: `output_tokens` must be a whole number of at least 1")
    text = prompt if isinstance(prompt, str) else json.dumps(prompt)
    return Request(prompt, len(text.split()), output_len)


def _share_gpt(turns: list[Any]) -> tuple[Any, Any]:
    """Returns the first human turn of a conversation, and the answer to it."""
    said = [turn for turn in turns if isinstance(turn, dict)]
    for at, turn in enumerate(said):
        if turn.get("from") in ("human", "user"):
            answer = said[at + 1].get("value") if at + 1 < len(said) else None
            return turn.get("value"), answer
    return None, None


def last_text(prompt: Any) -> Any:
    """Returns the text of a chat's last message, for endpoints that take no messages."""
    if not isinstance(prompt, list):
        return prompt
    last = prompt[-1] if prompt else None
    return last.get("content") if isinstance(last, dict) else None
