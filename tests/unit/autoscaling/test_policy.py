"""The policy behind Serve's own interface, what it costs to import, and a trace through both."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from benchmarks.autoscaling import ByRequests, ByWork, make_trace, replay
from truthgpt_serve.autoscaling.decision import Sample
from truthgpt_serve.autoscaling.policy import PREFIX, to_stats
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.hardware.plan import plan_replica

DEPLOYMENT = DeploymentID(name="ModelReplica", app_name="m")
FULL = Sample(0.0, queue_s=25, waiting=10, busy=1.0, service_s=2.5)
MAX_MEGABYTES = 8

Decide = Callable[[AutoscalingContext], tuple[int, dict[str, Any]]]


class Serve:
    """Calls the policy as Serve's controller does, with what its configuration came to."""

    def __init__(self, **scaling: Any) -> None:
        config = load_model_config({"serving": {"autoscaling": scaling}})
        plan = plan_replica(config, FamilySpec("x", "no_such:X"), environ={}, limits=(4, 8))
        assert plan.autoscaling_config is not None
        self.config = AutoscalingConfig(**plan.autoscaling_config)
        # The controller gets it pickled by value, in the configuration's own form.
        sent = self.config.policy
        policy = AutoscalingPolicy.from_serialized_policy_def(
            {"policy_function": sent.policy_function, "policy_kwargs": sent.policy_kwargs},
            sent.get_serialized_policy_def() or b"",
        )
        self.policy: Decide = _apply_autoscaling_config(_resolve_policy_callable(policy))
        self.state: dict[str, Any] = {}
        self.now_s = time.time()

    def look(
        self, *told: Sample | None, target: int, num_requests: float = 0.0, later_s: float = 2
    ) -> int:
        self.now_s += later_s
        replicas = [ReplicaID(f"r{index}", DEPLOYMENT) for index in range(len(told))]
        raw: dict[str, dict[ReplicaID, list[TimeStampedValue]]] = {}
        for replica, sample in zip(replicas, told, strict=True):
            for name, value in ({} if sample is None else to_stats(sample)).items():
                old = TimeStampedValue(self.now_s - 2, 999.0)
                raw.setdefault(name, {})[replica] = [old, TimeStampedValue(self.now_s, value)]
        ctx = AutoscalingContext(
            deployment_id=DEPLOYMENT,
            deployment_name=DEPLOYMENT.name,
            app_name=DEPLOYMENT.app_name,
            current_num_replicas=len(told),
            target_num_replicas=target,
            running_replicas=replicas,
            total_num_requests=num_requests,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics=raw,
            capacity_adjusted_min_replicas=self.config.min_replicas,
            capacity_adjusted_max_replicas=self.config.max_replicas,
            policy_state=self.state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=self.config,
        )
        number, self.state = self.policy(ctx)
        return number


def test_up_by_what_waits_within_two_samples() -> None:
    serve = Serve(max_replicas=8, target_queue_s=5)
    assert serve.look(FULL, target=1, num_requests=11) == 1
    assert serve.look(FULL, target=1, num_requests=11) == 6
    assert serve.look(FULL, target=6, num_requests=11) == 6


def test_from_zero_at_once_and_back_after_its_delay() -> None:
    serve = Serve(min_replicas=0, max_replicas=3, target_queue_s=5, downscale_to_zero_delay_s=6)
    assert serve.look(target=0) == 0
    assert serve.look(target=0, num_requests=1) == 1
    assert serve.look(target=1) == 1  # it starts, and the client has left
    assert serve.look(None, target=1) == 1
    calm = Sample(0.0)
    seen = [serve.look(calm, target=1, num_requests=float(index < 2)) for index in range(6)]
    assert seen == [1, 1, 1, 1, 1, 0]


def test_down_after_the_delay_of_the_configuration() -> None:
    serve = Serve(max_replicas=3, target_queue_s=5, downscale_delay_s=10)
    assert [serve.look(*[Sample(0.0)] * 3, target=3) for _ in range(6)] == [3] * 5 + [1]


def test_without_any_values_nothing_changes() -> None:
    serve = Serve(max_replicas=3, target_queue_s=5, downscale_delay_s=0)
    assert {serve.look(None, None, target=2, num_requests=50) for _ in range(50)} == {2}


def test_values_have_the_form_that_serve_checks() -> None:
    values = to_stats(FULL)
    assert all(name.startswith(PREFIX) for name in values)
    assert all(type(value) is float for value in values.values())
    assert values[f"{PREFIX}queue_s"] == 25


def test_the_controller_imports_next_to_nothing() -> None:
    program = (
        "import sys, dataclasses, typing, psutil\n"
        "before = psutil.Process().memory_info().rss\n"
        "import truthgpt_serve.autoscaling.policy\n"
        "print((psutil.Process().memory_info().rss - before) / 1e6)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('truthgpt_serve')))\n"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    memory, roots, own = result.stdout.splitlines()
    assert float(memory) < MAX_MEGABYTES
    assert not {"torch", "vllm", "ray", "pydantic", "numpy"} & set(roots.split())
    assert own.split() == [
        "truthgpt_serve",
        "truthgpt_serve.autoscaling",
        "truthgpt_serve.autoscaling.decision",
        "truthgpt_serve.autoscaling.policy",
    ]


@pytest.mark.parametrize(("target", "upscale_delay_s"), [(1, 0), (0.7, 30)])
def test_fewer_replica_seconds_and_more_requests_in_time(
    target: float, upscale_delay_s: float
) -> None:
    trace = make_trace(1200)
    ours = replay(trace, ByWork())
    other = replay(trace, ByRequests(target, upscale_delay_s))
    assert len(ours.waits_s) == len(other.waits_s) == len(trace)
    assert ours.attainment >= other.attainment
    assert ours.replica_s <= 0.8 * other.replica_s
    assert replay(trace, ByWork()) == ours
