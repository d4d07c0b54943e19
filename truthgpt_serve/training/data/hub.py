"""A data set of the Hugging Face hub, by its name.

The one reader that needs `datasets`. Knows no column's meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.errors import TrainingError

SPLIT = "train"


def read_hub(name: str, subset: str | None) -> Iterator[Row]:
    """Yields the rows of the `train` split.

    Raises:
        TrainingError: The hub has no such data set, or cannot be reached.
    """
    source = load_hub(name, subset)
    for number, values in enumerate(source, 1):
        yield Row(values, f"{name}: row {number}")


def load_hub(name: str, subset: str | None) -> Any:
    """Returns the `datasets.Dataset` of the `train` split, downloaded once and then cached.

    Raises:
        TrainingError: See `read_hub`.
    """
    import datasets

    try:
        return datasets.load_dataset(name, subset, split=SPLIT)
    except Exception as error:  # the library raises a class of its own for each way to fail
        shown = name if subset is None else f"{name} ({subset})"
        fix = "correct data.dataset; a local folder or file needs its path"
        message = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise TrainingError(
            f"data.dataset {shown!r} cannot be read: {type(error).__name__}: {message} ({fix})"
        ) from error
