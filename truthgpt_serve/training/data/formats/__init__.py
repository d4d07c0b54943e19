"""Recognizes how a data set writes its examples, and brings its rows to one form for each method.

The forms are those of trl's data sets: `text`, `messages`, `prompt` with `completion`, with
`chosen` and `rejected`, or with `completion` and `label`. Knows no tokenizer and no library that
trains.
"""

from __future__ import annotations

from truthgpt_serve.training.data.formats.layout import Layout, Sample
from truthgpt_serve.training.data.formats.recognize import formats_of, recognize

__all__ = ["Layout", "Sample", "formats_of", "recognize"]
