"""A decoder's graph, with or without a cache of keys and values, as one step after the other.

The names of inputs and outputs are those of Optimum's exports, which Transformers.js reads too:
`input_ids`, `attention_mask`, `position_ids`, `past_key_values.<layer>.key` and `.value`; `logits`,
`present.<layer>.key` and `.value`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy

from deployments.onnx.signature import Array, Arrays, Axis, Tensor
from truthgpt_serve.errors import ConfigError, Fault, RequestError, ServerError

PREFILL_TOKENS = 512
"""Tokens of a prompt in one run of a graph with a cache: its logits have the whole vocabulary for
each of them."""
LOGITS = "logits"
TRIAL = (1, 2, 3, 1)
TOLERANCE = 0.05
"""Largest difference of a logit, relative to the largest one, between a trial's runs."""
_PAST = re.compile(r"past_key_values\.(\d+\..*)")


class Runs(Protocol):
    """What is needed of a session."""

    inputs: list[Tensor]
    outputs: list[Tensor]

    def run(self, arrays: Arrays) -> Arrays:
        """Computes the outputs."""


@dataclass(slots=True)
class Progress:
    """How far one text is.

    Attributes:
        tokens: All that the graph has read.
        caches: Keys and values by the names of their inputs, `[1, heads, tokens, size]`; empty for
            a graph without a cache.
    """

    tokens: list[int] = field(default_factory=list)
    caches: Arrays = field(default_factory=dict)


class DecoderGraph:
    """Reads tokens and says what may come next.

    Args:
        session: The graph.
        place: The file, for errors.

    Attributes:
        keeps_cache: Whether a step computes its own tokens only.

    Raises:
        ConfigError: It is no such graph, or its steps do not agree with one run of all tokens.
    """

    def __init__(self, session: Runs, place: str) -> None:
        self._session = session
        self._place = place
        inputs = {tensor.name: tensor for tensor in session.inputs}
        outputs = {tensor.name for tensor in session.outputs}
        self._pasts = {name: t for name, t in inputs.items() if _PAST.fullmatch(name)}
        self._presents = {name: f"present.{name.partition('.')[2]}" for name in self._pasts}
        self.keeps_cache = bool(self._pasts)
        self._fields = {name: t for name, t in inputs.items() if name not in self._pasts}
        missing = {"input_ids"} - inputs.keys() | {LOGITS, *self._presents.values()} - outputs
        unknown = self._fields.keys() - _FILL.keys()
        if missing or unknown:
            self._refuse(
                f"lacks {', '.join(sorted(missing))}"
                if missing
                else f"wants {', '.join(sorted(unknown))}"
            )
        self.vocab_size = self._try()

    def _refuse(self, why: str) -> None:
        fix = "export it with `truthgpt export --to onnx`; task: tensor serves any graph"
        raise ConfigError([Fault(self._place, f"is no graph of a text decoder: {why}", fix)])

    def begin(self) -> Progress:
        """Returns the progress of a text without a token."""
        caches = {
            name: numpy.zeros(_empty_shape(tensor), tensor.dtype)
            for name, tensor in self._pasts.items()
        }
        return Progress([], caches)

    def read(self, progress: Progress, tokens: Sequence[int]) -> Array:
        """Reads further tokens.

        Args:
            progress: Of the text; grows.
            tokens: Token ids, at least one.

        Returns:
            The logits of what comes next, float32 `[vocabulary]`.

        Raises:
            RequestError: A token is outside the vocabulary.
            ServerError: The graph failed.
        """
        logits = numpy.zeros(0, numpy.float32)
        for start in range(0, len(tokens), PREFILL_TOKENS if self.keeps_cache else len(tokens)):
            size = PREFILL_TOKENS if self.keeps_cache else len(tokens)
            logits = self._step(progress, list(tokens[start : start + size]))
        return logits

    def _step(self, progress: Progress, tokens: list[int]) -> Array:
        before = len(progress.tokens)
        progress.tokens += tokens
        first = before if self.keeps_cache else 0
        arrays = {
            name: _FILL[name](progress.tokens, first).astype(tensor.dtype)
            for name, tensor in self._fields.items()
        }
        outputs = self._session.run({**arrays, **progress.caches})
        for name, present in self._presents.items():
            progress.caches[name] = outputs[present]
        logits: Array = outputs[LOGITS]
        last: Array = logits.reshape(-1, logits.shape[-1])[-1].astype(numpy.float32)
        return last

    def _try(self) -> int:
        """Runs some tokens at once and one by one; returns the size of the vocabulary."""
        try:
            whole = self.read(self.begin(), TRIAL)
            progress = self.begin()
            for token in TRIAL:
                single = self.read(progress, [token])
        except (RequestError, ServerError) as error:
            self._refuse(f"it does not run: {error.message}")
        scale = max(1.0, float(numpy.abs(whole).max()))
        if not float(numpy.abs(whole - single).max()) <= TOLERANCE * scale:
            self._refuse("tokens one by one give other logits than the same tokens at once")
        return len(whole)


def _empty_shape(tensor: Tensor) -> list[int]:
    """Returns the shape of a cache without a token: one row, and no length."""
    axes: tuple[Axis, ...] = tensor.axes or ()
    sizes = [_size(axis) for axis in axes]
    return [1, *sizes[1:]] if sizes else []


def _size(axis: Axis) -> int:
    """Returns the size of a fixed axis, which some exports write as a text; 0 for a free one."""
    if isinstance(axis, int):
        return axis
    return int(axis) if axis is not None and axis.isdecimal() else 0


_FILL: dict[str, Callable[[list[int], int], Array]] = {
    "input_ids": lambda tokens, first: numpy.array([tokens[first:]]),
    "attention_mask": lambda tokens, first: numpy.ones((1, len(tokens))),
    "position_ids": lambda tokens, first: numpy.arange(first, len(tokens))[None],
    "use_cache_branch": lambda tokens, first: numpy.array([first > 0]),
    "num_logits_to_keep": lambda tokens, first: numpy.array(1),
}
"""The value of each input, from all tokens and the place of the first one that is new."""
