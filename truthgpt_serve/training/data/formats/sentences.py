"""Sentences that belong together, and texts with a label: for `embedding` and `classification`.

Sources: the data set types of sentence-transformers, and the usual columns of the hub.
"""

from __future__ import annotations

from collections.abc import Sequence

from truthgpt_serve.training.data.formats.columns import need, pick
from truthgpt_serve.training.data.formats.layout import Columns, Format, Sample, Values

ANCHORS = ("anchor", "query", "question")
POSITIVES = ("positive", "pos", "answer", "document")
NEGATIVES = ("negative", "neg", "hard_negative")
FIRSTS = ("sentence1", "sentence_A", "text1", "premise")
SECONDS = ("sentence2", "sentence_B", "text2", "hypothesis")
SCORES = ("score", "similarity_score", "similarity", "label")
TEXTS = ("text", "sentence", "content", "review")
CLASSES = ("label", "labels", "class", "category", "target", "label_text")


def _find_pairs(values: Values, given: Columns) -> Columns | None:
    first, second = pick(values, FIRSTS), pick(values, SECONDS)
    score = pick(values, SCORES, given.get("label"))
    if first and second and score:
        return {"sentence1": first, "sentence2": second, "score": score}
    anchor, positive = pick(values, (*ANCHORS, *FIRSTS)), pick(values, (*POSITIVES, *SECONDS))
    if not anchor or not positive:
        return None
    negative = pick(values, NEGATIVES)
    return {"anchor": anchor, "positive": positive} | ({"negative": negative} if negative else {})


def _find_labeled(values: Values, given: Columns) -> Columns | None:
    text = pick(values, TEXTS, given.get("text"))
    label = pick(values, CLASSES, given.get("label"))
    return {"text": text, "label": label} if text and label else None


def _convert(values: Values, columns: Columns, has_template: bool) -> Sequence[Sample]:
    """Returns the parts as they are: the method checks their values."""
    found = {part: need(values, column) for part, column in columns.items()}
    return [Sample(found, dict(columns))]


PAIRS = Format(
    "pairs",
    "'anchor' and 'positive', perhaps 'negative', or 'sentence1', 'sentence2' and 'score'",
    _find_pairs,
    _convert,
)
LABELED = Format("labeled", "'text' and 'label'", _find_labeled, _convert)
