"""From rows to samples: recognizes a data set by its first usable row, then reads all alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from truthgpt_serve.training.data import BadRow, Row
from truthgpt_serve.training.data.formats import Layout, Sample, recognize


class SampleReader:
    """Reads the rows of one data set.

    Args:
        cfg: The configuration.
        tokenizer: The model's, which has a chat template or none.
    """

    def __init__(self, cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self._data = cfg["data"]
        self._method = cfg["training"]["method"]
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._layout: Layout | None = None

    def __call__(self, row: Row) -> Sequence[Sample]:
        """Returns the samples of a row.

        Raises:
            BadRow: It could not be read, or is none of the data set's format.
        """
        if row.problem:
            raise BadRow(row.problem)
        if self._layout is None:
            layout = recognize(row, self._data, self._method, has_template=self._has_template)
            samples = layout.samples(row)
            self._layout = layout
            return samples
        return self._layout.samples(row)

    def lines(self) -> list[str]:
        """Returns the lines of the plan on what was recognized."""
        return self._layout.lines() if self._layout else []
