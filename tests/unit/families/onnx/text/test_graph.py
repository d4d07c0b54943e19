"""A graph is read token by token; one whose steps disagree with the whole is refused."""

from __future__ import annotations

import numpy
import pytest

from deployments.onnx.signature import Arrays, Tensor
from deployments.onnx.text.graph import PREFILL_TOKENS, DecoderGraph
from truthgpt_serve.errors import ConfigError

SIZE = 2000


class Counting:
    """A session in numpy: the next token is the number of all tokens that the cache has seen."""

    def __init__(self, *, forgets: bool = False) -> None:
        ids = Tensor("input_ids", "int64", "INT64", ("batch", "length"))
        past = Tensor("past_key_values.0.key", "float32", "FP32", ("batch", "2", "past", 4))
        self.inputs = [ids, past]
        names = ("logits", "present.0.key")
        self.outputs = [Tensor(name, "float32", "FP32", None) for name in names]
        self.lengths: list[int] = []
        self._forgets = forgets

    def run(self, arrays: Arrays) -> Arrays:
        new, past = arrays["input_ids"].shape[1], arrays["past_key_values.0.key"]
        assert past.shape[:2] == (1, 2)
        self.lengths.append(new)
        before = 0 if self._forgets else past.shape[2]
        logits = numpy.zeros((1, new, SIZE), numpy.float32)
        for place in range(new):
            logits[0, place, before + place + 1] = 1
        grown = numpy.zeros((1, 2, past.shape[2] + new, 4), numpy.float32)
        return {"logits": logits, "present.0.key": grown}


def test_long_prompts_are_read_in_parts_and_the_cache_grows() -> None:
    session = Counting()
    graph = DecoderGraph(session, "m.onnx")
    assert graph.keeps_cache
    assert graph.vocab_size == SIZE
    session.lengths.clear()
    progress = graph.begin()
    length = 2 * PREFILL_TOKENS + 7
    assert graph.read(progress, [5] * length).argmax() == length
    assert graph.read(progress, [6]).argmax() == length + 1
    assert session.lengths == [PREFILL_TOKENS, PREFILL_TOKENS, 7, 1]


def test_steps_that_disagree_with_the_whole_are_refused() -> None:
    with pytest.raises(ConfigError, match="one by one give other logits"):
        DecoderGraph(Counting(forgets=True), "m.onnx")
