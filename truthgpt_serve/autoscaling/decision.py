"""From what the replicas told of their work to the number of them that the model needs.

Up when a request would wait too long: at the second sample that says so, as far as the waiting work
and the number of waiting requests make use of it. Down slowly: to the most that was needed in all
of the delay, and only as far as the replicas that are left would still be in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STALE_S = 30.0
"""A replica that told nothing for so long is one of which nothing is known."""
FULL_SHARE = 0.85
"""Work that replicas get at most by taking others away, of what they can do."""
CALM_SHARE = 0.5
"""Replicas are taken away only while requests wait no longer than this, of what they may."""
NUM_SAMPLES = 2
"""Samples in a row that must ask for more replicas."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one replica told of its work.

    Attributes:
        time_s: When, in seconds since the epoch.
        queue_s: How long a request that comes now waits there before it is worked on, in seconds.
        waiting: Requests that wait there.
        busy: How much of what the replica can do was in use since the sample before, 0 to 1.
        places: Requests that it works on at the same time.
        service_s: How long it works on a request, in seconds; 0 if it had none yet.
    """

    time_s: float
    queue_s: float = 0.0
    waiting: float = 0.0
    busy: float = 0.0
    places: float = 1.0
    service_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the configuration says, in replicas and seconds.

    Attributes:
        min_replicas: Fewest replicas.
        max_replicas: Most replicas.
        target_queue_s: How long a request may wait.
        upscale_delay_s: How long more replicas are needed before they are added.
        downscale_delay_s: How long fewer are needed before some are taken away.
        downscale_to_zero_delay_s: How long none is needed before the last one is.
    """

    min_replicas: int
    max_replicas: int
    target_queue_s: float
    upscale_delay_s: float = 0.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float = 600.0

    def clip(self, number: int) -> int:
        """Returns the number, within the bounds."""
        return max(self.min_replicas, min(self.max_replicas, number))


@dataclass(frozen=True, slots=True)
class Trend:
    """What the samples have asked for lately, kept between decisions.

    Attributes:
        read_s: The time of the newest sample that was looked at.
        above_since_s: Since when more replicas are asked for; None if they are not.
        num_above: Samples in a row that asked for more.
        above: Replicas that the newest of them asked for.
        below_since_s: Since when fewer replicas are enough; None if they are not.
        below: The most that was needed since then.
    """

    read_s: float = -math.inf
    above_since_s: float | None = None
    num_above: int = 0
    above: int = 0
    below_since_s: float | None = None
    below: int = 0


def desired_replicas(
    samples: Sequence[Sample | None],
    now_s: float,
    target: int,
    has_requests: bool,
    limits: Limits,
    trend: Trend,
) -> tuple[int, Trend]:
    """Returns how many replicas the model should have, and what to remember for the next call.

    Without news of the replicas the number stays.

    Args:
        samples: The newest sample of each replica that runs, None of one that told nothing.
        now_s: The time, in seconds since the epoch.
        target: Replicas that the model should have by the decision before; some may still start.
        has_requests: Whether any request is known to run or wait, wherever it is.
        limits: The configuration.
        trend: What the call before returned.
    """
    fresh = [each for each in samples if each is not None and now_s - each.time_s <= STALE_S]
    if not fresh:
        return limits.clip(target), Trend(read_s=trend.read_s)
    # All anew since the last look, so that a sample of one replica counts once.
    if min(each.time_s for each in fresh) <= trend.read_s:
        return limits.clip(target), trend
    read_s = max(each.time_s for each in fresh)
    num_silent = len(samples) - len(fresh)
    more = _needed_now(fresh, len(samples), limits)
    if more > target:
        return _rise(more, now_s, target, limits, trend, read_s)
    fewer = _needed_later(fresh, num_silent, target, has_requests, limits)
    if fewer < target:
        return _fall(fewer, now_s, target, limits, trend, read_s)
    return limits.clip(target), Trend(read_s=read_s)


def _needed_now(fresh: Sequence[Sample], num_running: int, limits: Limits) -> int:
    """Returns the replicas with which what waits now would be in time; 0 if it is."""
    queued_s = sum(each.queue_s for each in fresh)
    if queued_s / num_running <= limits.target_queue_s:
        return 0
    busy = sum(each.busy for each in fresh)
    # One request cannot be worked on by two replicas.
    useful = num_running + math.ceil(sum(each.waiting for each in fresh))
    return limits.clip(min(useful, math.ceil(busy + queued_s / limits.target_queue_s)))


def _needed_later(
    fresh: Sequence[Sample], num_silent: int, target: int, has_requests: bool, limits: Limits
) -> int:
    """Returns the fewest replicas that would do; those of which nothing is known are busy."""
    queued_s = sum(each.queue_s for each in fresh)
    if queued_s / len(fresh) > CALM_SHARE * limits.target_queue_s:
        return target
    busy = sum(each.busy for each in fresh) + num_silent
    if not busy and not queued_s and not has_requests:
        return limits.clip(0)
    places = max(1.0, sum(each.places for each in fresh) / len(fresh))
    service_s = max(each.service_s for each in fresh)
    for number in range(max(1, math.ceil(busy / FULL_SHARE)), target):
        if _wait_s(busy, number, places, service_s) <= limits.target_queue_s:
            return limits.clip(number)
    return target


def _wait_s(busy: float, number: int, places: float, service_s: float) -> float:
    """Returns about how long requests wait in the mean: Sakasegawa's formula for many servers."""
    share = busy / number
    if share >= 1:
        return math.inf
    servers = number * places
    rarely = math.pow(share, math.sqrt(2 * (servers + 1)) - 1)
    return service_s * rarely / (servers * (1 - share))


def _rise(
    more: int, now_s: float, target: int, limits: Limits, trend: Trend, read_s: float
) -> tuple[int, Trend]:
    since_s = now_s if trend.above_since_s is None else trend.above_since_s
    count = trend.num_above + 1
    if count >= NUM_SAMPLES and now_s - since_s >= limits.upscale_delay_s:
        # A single sample's peak counts no more than the one before it.
        return limits.clip(max(target, min(more, trend.above))), Trend(read_s=read_s)
    return limits.clip(target), Trend(read_s, since_s, count, more)


def _fall(
    fewer: int, now_s: float, target: int, limits: Limits, trend: Trend, read_s: float
) -> tuple[int, Trend]:
    since_s = now_s if trend.below_since_s is None else trend.below_since_s
    most = max(fewer, trend.below)
    delay_s = limits.downscale_to_zero_delay_s if target == 1 else limits.downscale_delay_s
    if now_s - since_s >= delay_s and trend.below_since_s is not None:
        least = 0 if target == 1 else 1  # the last one goes by a delay of its own
        return limits.clip(max(least, most)), Trend(read_s=read_s)
    return limits.clip(target), Trend(read_s, below_since_s=since_s, below=most)
