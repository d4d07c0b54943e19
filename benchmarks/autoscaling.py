"""Replays one trace through both ways to scale: by the number of requests, and by waiting work.

    python -m benchmarks.autoscaling

Nothing runs but the policies themselves: Serve's own, and `truthgpt_serve.autoscaling` with what
the replicas' meters tell it, on a clock of the simulation. The trace has bursts of many short
requests and of a few long ones, as of small images and large ones. A replica works on one request
after the other, and takes a while to start. An attained request waits no longer than the target.
The same trace gives the same figures on every machine.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from ray.serve.autoscaling_policy import _apply_delay_logic, replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from truthgpt_serve.autoscaling.policy import SAMPLE_S, WorkPolicy
from truthgpt_serve.replica.load import ReplicaLoad
from truthgpt_serve.replica.work import WorkStats
from truthgpt_serve.server.work import WorkMeter

TICK_S = 0.1
START_S = 20.0
MAX_REPLICAS = 12
TARGET_QUEUE_S = 20.0
DOWN_S = 60.0
COUNT_S = 10.0
"""Serve's replicas send the number of their requests so often."""
LOOK_BACK_S = 30.0
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request of the trace: when it comes, and how long a replica works on it."""

    arrival_s: float
    service_s: float


def make_trace(length_s: float = HOUR_S, seed: int = 16) -> list[Request]:
    """Returns a steady stream of short requests, with a burst of short or long ones in turn."""
    numbers = random.Random(seed)
    found, time_s = [], 0.0
    while (time_s := time_s + numbers.expovariate(0.5)) < length_s:
        found.append(Request(time_s, numbers.uniform(0.3, 0.7)))
    for index, start_s in enumerate(range(120, int(length_s), 240)):
        number, over_s, low_s, high_s = (80, 10, 0.3, 0.7) if index % 2 else (16, 60, 10, 20)
        for _ in range(number):
            arrival_s = start_s + numbers.uniform(0, over_s)
            found.append(Request(arrival_s, numbers.uniform(low_s, high_s)))
    return sorted(found, key=lambda request: request.arrival_s)


@dataclass
class Clock:
    """The simulation's time."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Returns it."""
        return self.now_s


class Replica:
    """A model that does one request after the other, with the meters of a real replica."""

    def __init__(self, clock: Clock) -> None:
        self.ready_s = clock() + START_S
        self.queue: deque[tuple[Request, AbstractContextManager[None]]] = deque()
        self._left_s = 0.0
        self._clock = clock
        self._meter = WorkMeter(clock)
        host: Any = SimpleNamespace(model=None, work=self._meter, batcher=None)
        self._stats = WorkStats(ReplicaLoad(1, clock), host, clock)
        self.told: dict[str, tuple[float, float]] = {}

    def take(self, request: Request) -> None:
        """Puts a request into the queue; the megapixel steps say its time only roughly."""
        rough = 1 + 0.2 * ((request.arrival_s * 1000) % 2 - 1)
        work = self._meter.taking(100 * request.service_s * rough)
        work.__enter__()
        self.queue.append((request, work))
        if len(self.queue) == 1:
            self._left_s = request.service_s

    def work(self) -> Request | None:
        """Works for a tick; returns the request that begins after one that has ended."""
        if not self.queue:
            return None
        self._left_s -= TICK_S
        if self._left_s > 0:
            return None
        self.queue.popleft()[1].__exit__(None, None, None)
        if not self.queue:
            return None
        self._left_s = self.queue[0][0].service_s
        return self.queue[0][0]

    def record(self) -> None:
        """Tells what the replica's `record_autoscaling_stats` would."""
        self.told = {name: (self._clock(), value) for name, value in self._stats.read().items()}


@dataclass
class View:
    """What a policy is shown: the replicas that run, those wanted, and requests over time."""

    now_s: float
    running: Sequence[Replica]
    target: int
    counts: Sequence[int] = ()


class ByRequests:
    """Serve's policy, with its own delays: the mean of `counts` by the target number.

    Args:
        target: `target_ongoing_requests`.
        upscale_delay_s: See the configuration.
    """

    def __init__(self, target: float, upscale_delay_s: float) -> None:
        self._config = AutoscalingConfig(
            min_replicas=1,
            max_replicas=MAX_REPLICAS,
            target_ongoing_requests=target,
            upscale_delay_s=upscale_delay_s,
            downscale_delay_s=DOWN_S,
        )
        self._state: dict[str, Any] = {}

    def __call__(self, view: View) -> int:
        """Returns the number of replicas."""
        ctx: Any = SimpleNamespace(
            current_num_replicas=len(view.running),
            target_num_replicas=view.target,
            total_num_requests=sum(view.counts) / max(1, len(view.counts)),
            config=self._config,
        )
        wanted, _ = replica_queue_length_autoscaling_policy(ctx)
        wanted = min(MAX_REPLICAS, max(1, -int(-wanted // 1)))
        number, self._state = _apply_delay_logic(
            wanted, view.target, self._config, self._state, _now=view.now_s
        )
        return number


class ByWork:
    """The policy of `target_queue_s`."""

    def __init__(self, target_queue_s: float = TARGET_QUEUE_S) -> None:
        self._policy = WorkPolicy(target_queue_s, 0, DOWN_S, DOWN_S)
        self._state: dict[str, Any] = {}

    def __call__(self, view: View) -> int:
        """Returns the number of replicas."""
        recorded: dict[str, dict[Any, Any]] = {}
        for replica in view.running:
            for name, (time_s, value) in replica.told.items():
                point = SimpleNamespace(timestamp=time_s, value=value)
                recorded.setdefault(name, {})[replica] = [point]
        ctx = SimpleNamespace(
            running_replicas=view.running,
            target_num_replicas=view.target,
            total_num_requests=sum(len(replica.queue) for replica in view.running),
            capacity_adjusted_min_replicas=1,
            capacity_adjusted_max_replicas=MAX_REPLICAS,
            policy_state=self._state,
            current_time=view.now_s,
            raw_metrics=recorded,
        )
        number, self._state = self._policy(ctx)
        return number


@dataclass
class Outcome:
    """What a policy came to: seconds of all replicas together, waits, changes of the number."""

    replica_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    num_changes: int = 0

    @property
    def attainment(self) -> float:
        """The share of requests that waited no longer than the target."""
        return sum(wait_s <= TARGET_QUEUE_S for wait_s in self.waits_s) / len(self.waits_s)


class Simulation:
    """A model whose replicas take requests, and a policy that says how many there are."""

    def __init__(self, policy: Callable[[View], int]) -> None:
        self.outcome = Outcome()
        self.clock = Clock()
        self._policy = policy
        self._replicas = [Replica(self.clock)]
        self._replicas[0].ready_s = 0.0
        self._leaving: list[Replica] = []
        self._counts: deque[int] = deque(maxlen=int(LOOK_BACK_S / SAMPLE_S))
        self._shown: list[int] = []

    def step(self, tick: int, arrived: Sequence[Request]) -> None:
        """Has the replicas take requests, and work for a tick; looks at them where it is due."""
        self.clock.now_s = now_s = tick * TICK_S
        running = [replica for replica in self._replicas if replica.ready_s <= now_s]
        for request in arrived:
            best = min(running, key=lambda each: len(each.queue))
            best.take(request)
            if len(best.queue) == 1:
                self.outcome.waits_s.append(0.0)
        for replica in (*running, *self._leaving):
            if (begun := replica.work()) is not None:
                self.outcome.waits_s.append(now_s - begun.arrival_s)
        self._leaving = [replica for replica in self._leaving if replica.queue]
        self.outcome.replica_s += TICK_S * (len(self._replicas) + len(self._leaving))
        self._record(tick, running)
        if tick % 5 == 0:  # twice a second, as Serve's controller looks
            view = View(now_s, running, len(self._replicas), self._shown)
            self._scale(self._policy(view))

    def _record(self, tick: int, running: Sequence[Replica]) -> None:
        if tick % round(SAMPLE_S / TICK_S) == 0:
            self._counts.append(sum(len(replica.queue) for replica in running))
            for replica in running:
                replica.record()
        if tick % round(COUNT_S / TICK_S) == 0:
            self._shown = list(self._counts)

    def _scale(self, number: int) -> None:
        """The replicas that started last go first, and end their requests before."""
        self.outcome.num_changes += number != len(self._replicas)
        self._replicas += [Replica(self.clock) for _ in range(number - len(self._replicas))]
        while len(self._replicas) > number:
            self._leaving.append(self._replicas.pop())


def replay(trace: Sequence[Request], policy: Callable[[View], int]) -> Outcome:
    """Returns what the policy comes to with the trace."""
    simulation, coming = Simulation(policy), deque(trace)
    for tick in range(int((trace[-1].arrival_s + 300) / TICK_S)):
        arrived = []
        while coming and coming[0].arrival_s <= tick * TICK_S:
            arrived.append(coming.popleft())
        simulation.step(tick, arrived)
    return simulation.outcome


def main() -> None:
    """Prints the figures of both, the one by requests with several settings."""
    trace = make_trace()
    print(f"{len(trace)} requests, {sum(r.service_s for r in trace):.0f} s of work")
    print("| policy | replica-seconds | in time | p99 wait (s) | changes |\n|---|---|---|---|---|")
    ours = _print(f"target_queue_s {TARGET_QUEUE_S:g}", replay(trace, ByWork()))
    others = []
    for delay_s in (0, 5, 30):
        for target in (0.5, 0.7, 1, 1.5, 2, 3, 5, 8):
            name = f"target_ongoing_requests {target:g}, upscale_delay_s {delay_s}"
            other = _print(name, replay(trace, ByRequests(target, delay_s)))
            others.append((min(other.attainment, ours.attainment), -other.replica_s, name))
    attainment, minus_s, name = max(others)
    share = 1 + ours.replica_s / minus_s
    often = "as often" if attainment == ours.attainment else f"most often, {attainment:.2%}"
    print(f"{share:.0%} fewer replica-seconds than the setting that is in time {often}: {name}")


def _print(name: str, outcome: Outcome) -> Outcome:
    wait_s = sorted(outcome.waits_s)[int(0.99 * len(outcome.waits_s))]
    numbers = f"{outcome.replica_s:.0f} | {outcome.attainment:.2%} | {wait_s:.1f}"
    print(f"| {name} | {numbers} | {outcome.num_changes} |")
    return outcome


if __name__ == "__main__":
    main()
