"""From the rows of a data set to the examples of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from truthgpt_serve.config.training.methods import method_of
from truthgpt_serve.training.data import Row
from truthgpt_serve.training.data.formats import Sample
from truthgpt_serve.training.text.examples import Example, Packer, TokenExamples, TooLong
from truthgpt_serve.training.text.labels.examples import ClassExamples, SentenceExamples
from truthgpt_serve.training.text.pairs import PairExamples, PromptExamples
from truthgpt_serve.training.text.preferences.examples import (
    AnswerExamples,
    ComparisonExamples,
)
from truthgpt_serve.training.text.samples import SampleReader

_KINDS: dict[str, Callable[[Mapping[str, Any], Any], Callable[[Sample], Example]]] = {
    "tokens": TokenExamples,
    "pairs": PairExamples,
    "prompts": PromptExamples,
    "comparisons": ComparisonExamples,
    "answers": AnswerExamples,
    "sentences": SentenceExamples,
    "classes": ClassExamples,
}
"""What makes an example of a sample, by `Method.rows`."""


class ExampleMaker:
    """Makes the examples of one table.

    Args:
        cfg: The configuration.
        tokenizer: The model's.
        reader: Reads the rows of the data set; tables of one data set share it.

    Attributes:
        num_dropped: Examples of which `data.max_seq_len` left nothing to learn.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any, reader: SampleReader) -> None:
        self._read = reader
        self._make = _KINDS[method_of(cfg).rows](cfg, tokenizer)
        packs = cfg["data"]["pack"] and method_of(cfg).packs
        self._pack = Packer(cfg["data"]["max_seq_len"]) if packs else None
        self.num_dropped = 0

    def __call__(self, row: Row) -> list[Example]:
        """Returns the examples that a row gives: usually one, of packed rows none or several.

        One that is too long to learn from is dropped and counted: the row itself is sound.

        Raises:
            BadRow: It cannot be used.
        """
        examples = []
        for sample in self._read(row):
            try:
                examples.append(self._make(sample))
            except TooLong:
                self.num_dropped += 1
        if self._pack is None:
            return examples
        return [packed for example in examples for packed in self._pack(example)]

    @property
    def num_cut(self) -> int:
        """Examples that were cut at `data.max_seq_len`."""
        return int(getattr(self._make, "num_cut", 0))

    def lines(self) -> Iterator[str]:
        """Yields the lines of the plan on what is learned of each example."""
        if isinstance(self._make, TokenExamples):
            yield from self._make.lines()
