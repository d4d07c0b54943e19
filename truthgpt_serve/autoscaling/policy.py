"""Serve's custom policy: the numbers that the replicas record, and what Serve does about them.

Serve's controller calls it at each of its looks, and pickles this module by value: what it needs
stands in `decision`. How long to wait is decided there, so Serve's own delays are 0.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from truthgpt_serve.autoscaling.decision import Limits, Sample, Trend, desired_replicas

POLICY = "truthgpt_serve.autoscaling.policy:WorkPolicy"
PREFIX = "truthgpt_"
"""Before the names of a `Sample`'s values among those that a replica records."""
SAMPLE_S = 2.0
"""How often a replica records and sends its values."""
LOOK_BACK_S = 10.0
"""How long Serve keeps them: one sample in each fifth of it."""
_TREND = "trend"


def to_stats(sample: Sample) -> dict[str, float]:
    """Returns what `record_autoscaling_stats` returns; Serve adds the time."""
    values = {each.name: float(getattr(sample, each.name)) for each in fields(sample)}
    return {PREFIX + name: value for name, value in values.items() if name != "time_s"}


class WorkPolicy:
    """Asks for as many replicas as let no request wait too long.

    Args:
        target_queue_s: How long a request may wait, in seconds.
        upscale_delay_s: See `Limits`.
        downscale_delay_s: See `Limits`.
        downscale_to_zero_delay_s: See `Limits`.
    """

    def __init__(
        self,
        target_queue_s: float,
        upscale_delay_s: float,
        downscale_delay_s: float,
        downscale_to_zero_delay_s: float,
    ) -> None:
        self._target_queue_s = target_queue_s
        self._delays_s = (upscale_delay_s, downscale_delay_s, downscale_to_zero_delay_s)

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Returns the number of replicas, and the state that Serve hands back the next time.

        Args:
            ctx: Ray Serve's `AutoscalingContext`.
        """
        trend = ctx.policy_state.get(_TREND, Trend())
        running = ctx.running_replicas
        if not running:  # one starts, or none is needed; the first request starts one without us
            return ctx.target_num_replicas, {_TREND: Trend(read_s=trend.read_s)}
        limits = Limits(
            ctx.capacity_adjusted_min_replicas,
            ctx.capacity_adjusted_max_replicas,
            self._target_queue_s,
            *self._delays_s,
        )
        recorded = ctx.raw_metrics or {}
        number, trend = desired_replicas(
            [_newest(recorded, replica) for replica in running],
            ctx.current_time,
            ctx.target_num_replicas,
            ctx.total_num_requests > 0,
            limits,
            trend,
        )
        return number, {_TREND: trend}


def _newest(recorded: Any, replica: Any) -> Sample | None:
    values, times = {}, []
    for each in fields(Sample):
        series = recorded.get(PREFIX + each.name, {}).get(replica)
        if series:
            values[each.name] = float(series[-1].value)
            times.append(series[-1].timestamp)
    return Sample(max(times), **values) if times else None
