"""What does not fit on a machine is said with how much is missing, whatever asks for it."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_serve.hardware.plan import ReplicaPlan
from truthgpt_serve.validate.capacity import Demand, demand_of, find_shortages

MACHINE = {"CPU": 4.0, "GPU": 2.0, "memory": 1e9}


def plan(**changes: Any) -> ReplicaPlan:
    values: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 1, "num_gpus": 0},
        "max_ongoing_requests": 1,
        "max_queued_requests": 1,
        "graceful_shutdown_timeout_s": 1,
        "health_check_period_s": 1,
        "health_check_timeout_s": 1,
    }
    return ReplicaPlan(**{**values, **changes})


def scaled(**autoscaling: int) -> dict[str, Any]:
    return {"num_replicas": None, "autoscaling_config": autoscaling}


def shortages(*demands: Demand) -> list[str]:
    return [str(fault) for fault in find_shortages(demands, MACHINE, "serve.yaml")]


def demand(name: str, replicas: int = 1, **resources: float) -> Demand:
    return Demand(name, f"{name}.yaml", replicas, (resources,))


def test_what_fits_is_silent() -> None:
    assert shortages(demand("a", 4, CPU=1), demand("b", 2, GPU=1)) == []
    assert shortages(demand("a", 4, CPU=0.1, GPU=0.5), demand("b", 8, CPU=0.45)) == []


def test_sums_name_who_asks_for_how_much() -> None:
    (fault,) = shortages(demand("a", 3, CPU=1), demand("b", 2, CPU=1.5))
    assert "need 6 CPU cores; this machine has 4: 2 too few (a 3, b 3)" in fault
    (fault,) = shortages(demand("only", 5, CPU=1))
    assert "need 5 CPU cores; this machine has 4: 1 too few (only 5)" in fault


def test_one_replica_that_is_too_large_does_not_blame_the_others() -> None:
    (fault,) = shortages(demand("a", CPU=9), demand("b", CPU=4))
    assert fault.startswith("a.yaml: a replica needs 9 CPU cores; this machine has 4: 5 too few")


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"memory": 3e9}, "3000000000 bytes of memory; this machine has 1000000000"),
        ({"disk": 2.0}, "2 of the resource 'disk'; this machine has 0: 2 too few"),
    ],
)
def test_every_kind_of_resource_counts(resources: dict[str, float], words: str) -> None:
    (fault,) = shortages(demand("a", 1, **resources))
    assert words in fault


def test_fractions_of_gpus_that_do_not_pack() -> None:
    (fault,) = shortages(demand("a", 3, GPU=0.6))
    assert "no room for a 0.6 (left on each: 0.4, 0.4)" in fault
    assert shortages(demand("a", 2, GPU=0.6), demand("b", 2, GPU=0.4)) == []
    (fault,) = shortages(demand("a", 1, GPU=0.5), demand("b", 1, GPU=0.6), demand("c", 1, GPU=0.8))
    assert "no room for a 0.5" in fault
    several = Demand("tp", "tp.yaml", 1, ({"GPU": 1.0, "CPU": 1.0}, {"GPU": 1.0}))
    (fault,) = shortages(several, demand("a", GPU=0.1))
    assert "need 2.1 GPUs; this machine has 2: 0.1 too few" in fault


def test_any_number_of_replicas_is_added_up_at_once() -> None:
    (fault,) = shortages(demand("a", 10**12, CPU=1), demand("b", GPU=0.5))
    assert "need 1e+12 CPU cores" in fault
    (fault,) = shortages(demand("a", 10**12, GPU=0.5))
    assert "need 500000000000 GPUs" in fault


def test_places_that_one_machine_does_not_have() -> None:
    (fault,) = shortages(Demand("r", "r.yaml", 3, ({},), per_node=1))
    assert "3 replicas, of which one machine takes 1 (max_replicas_per_node): 2 wait" in fault
    (fault,) = shortages(Demand("r", "r.yaml", 1, ({},), labels={"zone": "eu"}))
    assert "asks for a node with the labels zone=eu" in fault
    assert shortages(Demand("r", "r.yaml", 1, ({},), labels={"zone": "!eu"})) == []


@pytest.mark.parametrize(
    ("changes", "deployment", "replicas"),
    [
        ({"num_replicas": 3}, None, 3),
        (
            {"num_replicas": None, "autoscaling_config": {"min_replicas": 2, "max_replicas": 9}},
            {},
            2,
        ),
        ({"num_replicas": None, "autoscaling_config": {"min_replicas": 0}}, {}, 0),
        (
            {
                "num_replicas": None,
                "autoscaling_config": {"min_replicas": 1, "initial_replicas": 4},
            },
            {},
            4,
        ),
        ({"num_replicas": 3}, {"num_replicas": 5}, 5),
        ({"num_replicas": 3}, {"num_replicas": "auto"}, 1),
        ({"num_replicas": 3}, {"autoscaling_config": {"min_replicas": 6}}, 6),
    ],
)
def test_replicas_at_first(
    changes: dict[str, Any], deployment: dict[str, Any] | None, replicas: int
) -> None:
    assert demand_of(plan(**changes), "m", "place", deployment).replicas == replicas


def test_the_serve_file_wins() -> None:
    given = {"ray_actor_options": {"num_gpus": 0.5, "memory": 5, "resources": {"disk": 2}}}
    found = demand_of(plan(ray_actor_options={"num_cpus": 8}), "m", "place", given)
    assert found.of_replica() == {"CPU": 1.0, "GPU": 0.5, "memory": 5.0, "disk": 2.0}
    bundles = [{"CPU": 2.0, "GPU": 1.0}, {"GPU": 1.0}]
    found = demand_of(plan(), "m", "place", {"placement_group_bundles": bundles})
    assert found.of_replica() == {"CPU": 2.0, "GPU": 2.0}
