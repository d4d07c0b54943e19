"""How many requests a replica gives to its model at the same time; the rest waits in fair order."""

from __future__ import annotations

from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.server.instance import ModelInstance

BATCHES = 3
"""One that runs, the next one, and those that come while the places of an answered one are given
away. Fewer may leave a batch smaller than it could be; with more, requests of a key with a high
priority wait behind others that the model has already."""


def divide_places(instance: ModelInstance, *, has_keys: bool) -> tuple[int, int]:
    """Returns how many requests the model is given, and how many wait for that.

    A batcher takes requests as they came, without regard to keys: with keys it gets no more than it
    needs to fill its batches. One that sorts them by a `batch_key` needs all to choose from, and a
    class that also streams works on each stream beside its batches.

    Args:
        instance: The model, which is started.
        has_keys: Whether requests come with keys; without them the order is the same anyway.
    """
    ongoing, waiting = request_limits(instance.config, instance.spec)
    batcher = instance.batcher
    if not has_keys or batcher is None or batcher.sorts or instance.streams:
        return ongoing, waiting
    places = min(ongoing, BATCHES * batcher.max_batch_size)
    return places, ongoing + waiting - places
