"""Joins the arrays of several requests along the first axis, and splits the results exactly.

Whether rows may be joined at all is also decided here, by a trial with random numbers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy

from deployments.onnx.signature import Arrays, Axis, Tensor
from truthgpt_serve.errors import RequestError, ServerError

logger = logging.getLogger(__name__)
Run = Callable[[Arrays], Arrays]

TRIAL_SIZES = (8, 16, 32, 64, 224, 3, 1)
"""Sizes of the other free axes that the trial tries, until the graph takes one."""
TRIAL_ROWS = (1, 2, 1)
"""Rows of the requests in the trial."""
TOLERANCES = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-6}
"""Largest difference, relative to the largest value of the output, that counts as rounding."""


def batch_key(arrays: Arrays) -> Hashable:
    """Returns what requests must share to run together: the sizes of all axes but the first."""
    return tuple(array.shape[1:] for array in arrays.values())


def num_rows(arrays: Arrays) -> int:
    """Returns the size of the first axis."""
    return len(next(iter(arrays.values())))


def groups(requests: Sequence[Arrays], max_rows: int) -> Iterator[list[int]]:
    """Yields the places of requests that run together, in order within each group.

    Args:
        requests: The inputs of each request; some may differ in their other axes.
        max_rows: Most rows in a group; a request that has more by itself is alone.
    """
    by_key: dict[Hashable, list[int]] = {}
    for place, arrays in enumerate(requests):
        by_key.setdefault(batch_key(arrays), []).append(place)
    for places in by_key.values():
        group: list[int] = []
        rows = 0
        for place in places:
            size = num_rows(requests[place])
            if group and rows + size > max_rows:
                yield group
                group, rows = [], 0
            group.append(place)
            rows += size
        yield group


def run_joined(run: Run, requests: Sequence[Arrays]) -> list[Arrays]:
    """Runs requests of one group together; returns the outputs of each.

    Raises:
        ServerError: An output has another number of rows than the inputs.
    """
    if len(requests) == 1:
        return [run(requests[0])]
    joined = {
        name: numpy.concatenate([arrays[name] for arrays in requests]) for name in requests[0]
    }
    ends = list(itertools.accumulate(map(num_rows, requests)))
    outputs = run(joined)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != ends[-1]:
            raise ServerError(
                f"output {name!r} has shape {list(array.shape)} for {ends[-1]} rows, so requests "
                "cannot be joined: set serving.engine.batch_requests: false"
            )
    starts = [0, *ends[:-1]]
    return [
        {name: array[start:end] for name, array in outputs.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


def rows_are_independent(run: Run, inputs: Sequence[Tensor], seed: int) -> bool:
    """Whether joined requests get the same results as alone, by a trial with random numbers.

    Args:
        run: The session, one call.
        inputs: The graph's inputs, all with a free first axis.
        seed: Of the random numbers.
    """
    for size in TRIAL_SIZES:
        random = numpy.random.default_rng(seed)
        requests = [
            {tensor.name: _random(tensor, rows, size, random) for tensor in inputs}
            for rows in TRIAL_ROWS
        ]
        try:
            alone = [run(request) for request in requests]
        except (RequestError, ServerError):
            continue  # the graph does not take this size
        try:
            joined = run_joined(run, requests)
        except (RequestError, ServerError) as error:
            logger.info("requests are not joined: %s", error)
            return False
        return all(_is_same(a, b) for a, b in zip(alone, joined, strict=True))
    logger.info("requests are not joined: no trial with other axes of %s works", TRIAL_SIZES)
    return False


def _random(
    tensor: Tensor, rows: int, size: int, random: numpy.random.Generator
) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.generic]]:
    axes: tuple[Axis, ...] = (tensor.axes or ())[1:]
    shape = (rows, *(axis if isinstance(axis, int) else size for axis in axes))
    if tensor.dtype in TOLERANCES:
        return random.standard_normal(shape).astype(tensor.dtype)
    numbers = random.integers(0, 2, shape)  # small enough for every vocabulary
    if tensor.dtype == "object":
        return numpy.array(["a", "b"], dtype=object)[numbers]
    return numbers.astype(tensor.dtype)


def _is_same(alone: Arrays, joined: Arrays) -> bool:
    return all(_is_close(array, joined[name]) for name, array in alone.items())


def _is_close(
    alone: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.generic]],
    joined: numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.generic]],
) -> bool:
    if alone.shape != joined.shape:
        return False
    tolerance = TOLERANCES.get(alone.dtype.name)
    if tolerance is None or alone.size == 0:
        return bool(numpy.array_equal(alone, joined))
    finite = numpy.abs(alone[numpy.isfinite(alone)])
    scale = float(finite.max()) if finite.size else 0.0
    return bool(numpy.allclose(alone, joined, rtol=0, atol=tolerance * scale, equal_nan=True))
