"""What the replicas of a service ask for at first, and what of it a machine does not have.

A machine is its amount of each of Ray's resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_serve.errors import Fault
from truthgpt_serve.hardware.plan import ReplicaPlan
from truthgpt_serve.hardware.resources import cpu_node_labels

WORDS = {"CPU": "CPU cores", "GPU": "GPUs", "memory": "bytes of memory"}
TOTAL_FIX = "lower hardware.cpus or hardware.gpus, or add nodes to the cluster"
_EPSILON = 1e-6
_OWN_LABELS = "ray.io/"
"""Labels that Ray gives to every node by itself."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one deployment asks for when it starts.

    Attributes:
        name: Whose it is.
        place: Where that stands.
        replicas: How many there are at first.
        bundles: What each of them takes: more than one for an engine of several GPUs.
        per_node: Replicas on one node at most, or None.
        labels: Labels of the nodes.
    """

    name: str
    place: str
    replicas: int
    bundles: tuple[Mapping[str, float], ...]
    per_node: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def of_replica(self) -> dict[str, float]:
        """Returns what one replica takes altogether."""
        total: dict[str, float] = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                total[name] = total.get(name, 0.0) + amount
        return total


def demand_of(
    plan: ReplicaPlan, name: str, place: str, deployment: Mapping[str, Any] | None = None
) -> Demand:
    """Returns what a deployment asks for.

    Args:
        plan: What its configuration gives.
        name: Whose it is.
        place: Where that stands.
        deployment: Its entry under `deployments:` in the Serve file, which wins.
    """
    given = deployment or {}
    actor = given.get("ray_actor_options")
    options = {"num_cpus": 1, **actor} if isinstance(actor, Mapping) else plan.ray_actor_options
    bundles = given.get("placement_group_bundles", plan.placement_group_bundles)
    selectors = plan.placement_group_label_selector or [options.get("label_selector") or {}]
    return Demand(
        name=name,
        place=place,
        replicas=_first_replicas(plan, given),
        bundles=tuple(bundles) if bundles else (_resources_of(options),),
        per_node=given.get("max_replicas_per_node", plan.max_replicas_per_node),
        labels=dict(selectors[0]),
    )


def _resources_of(options: Mapping[str, Any]) -> dict[str, float]:
    amounts = {
        "CPU": options.get("num_cpus"),
        "GPU": options.get("num_gpus"),
        "memory": options.get("memory"),
        **(options.get("resources") or {}),
    }
    return {name: float(amount) for name, amount in amounts.items() if amount}


def _first_replicas(plan: ReplicaPlan, given: Mapping[str, Any]) -> int:
    number = given.get("num_replicas")
    scaling = given.get("autoscaling_config") or (None if number else plan.autoscaling_config)
    if number == "auto":
        scaling = {"min_replicas": 1, **(scaling or {})}
    if isinstance(scaling, Mapping):
        initial = scaling.get("initial_replicas")
        return int(scaling.get("min_replicas", 1) if initial is None else initial)
    return int(number or plan.num_replicas or 1)


def find_shortages(
    demands: Sequence[Demand], machine: Mapping[str, float], file: str
) -> Iterator[Fault]:
    """Yields what the machine does not have: for one replica, then for all together.

    Args:
        demands: What is asked for. One replica's CPUs and GPUs are compared elsewhere, where their
            keys are known.
        machine: What there is, by Ray's names.
        file: For faults of the service as a whole.
    """
    fit = [demand for demand in demands if _fits_alone(demand, machine)]
    for demand in demands:
        yield from _replica_shortages(demand, machine)
    names = sorted({name for demand in fit for name in demand.of_replica()})
    for name in names:
        yield from _total_shortage(fit, name, machine.get(name, 0.0), file)
    yield from _unpacked_gpus(fit, machine.get("GPU", 0.0), file)


def _fits_alone(demand: Demand, machine: Mapping[str, float]) -> bool:
    asked = demand.of_replica().items()
    return all(amount <= machine.get(name, 0.0) + _EPSILON for name, amount in asked)


def _replica_shortages(demand: Demand, machine: Mapping[str, float]) -> Iterator[Fault]:
    for name, amount in demand.of_replica().items():
        present = machine.get(name, 0.0)
        if amount <= present + _EPSILON or name.startswith("accelerator_type:"):
            continue
        words = WORDS.get(name, f"of the resource {name!r}")
        message = f"a replica needs {amount:.12g} {words}; this machine has {present:.12g}"
        yield Fault(demand.place, f"{message}: {amount - present:.12g} too few", TOTAL_FIX)
    if demand.per_node is not None and demand.replicas > demand.per_node:
        message = (
            f"{demand.replicas} replicas, of which one machine takes {demand.per_node} "
            f"(max_replicas_per_node): {demand.replicas - demand.per_node} wait for more nodes"
        )
        yield Fault(demand.place, message, "lower num_replicas, or add nodes to the cluster")
    # What the cluster's own environment adds, where this runs in one of its Pods, is there.
    given = cpu_node_labels().items()
    labels = {
        key: value
        for key, value in demand.labels.items()
        if _OWN_LABELS not in key and (key, value) not in given
    }
    if any(not value.startswith("!") for value in labels.values()):
        shown = ", ".join(f"{key}={value}" for key, value in labels.items())
        message = f"asks for a node with the labels {shown}; `make serve` gives this machine none"
        yield Fault(demand.place, message, "remove label_selector, or use a cluster with labels")


def _total_shortage(
    demands: Iterable[Demand], name: str, present: float, file: str
) -> Iterator[Fault]:
    parts = {
        demand.name: _on_one_machine(demand) * demand.of_replica().get(name, 0.0)
        for demand in demands
    }
    needed = sum(parts.values())
    if needed <= present + _EPSILON or name.startswith("accelerator_type:"):
        return
    words = WORDS.get(name, f"of the resource {name!r}")
    shares = ", ".join(f"{whose} {amount:.12g}" for whose, amount in parts.items() if amount)
    message = (
        f"all replicas together need {needed:.12g} {words}; this machine has {present:.12g}: "
        f"{needed - present:.12g} too few ({shares})"
    )
    yield Fault(file, message, TOTAL_FIX)


def _on_one_machine(demand: Demand) -> int:
    return demand.replicas if demand.per_node is None else min(demand.replicas, demand.per_node)


def _unpacked_gpus(demands: Iterable[Demand], present: float, file: str) -> Iterator[Fault]:
    """Yields the fault of fractions that leave no GPU with room enough, though their sum fits."""
    sharing = [demand for demand in demands if demand.of_replica().get("GPU")]
    needed = sum(_on_one_machine(each) * each.of_replica()["GPU"] for each in sharing)
    if needed > present + _EPSILON:
        return  # reported as a sum, of any number of replicas
    shares = sorted(
        (
            (share, demand.name)
            for demand in sharing
            for _ in range(_on_one_machine(demand))
            for bundle in demand.bundles
            for share in _gpu_shares(bundle.get("GPU", 0.0))
        ),
        reverse=True,
    )
    free = [1.0] * int(present)
    left = []
    for share, name in shares:
        # The fullest one with room, as Ray chooses.
        room = [index for index, space in enumerate(free) if space + _EPSILON >= share]
        if not room:
            left.append(f"{name} {share:g}")
            continue
        free[min(room, key=lambda index: free[index])] -= share
    if left:
        spaces = ", ".join(f"{space:g}" for space in free)
        message = (
            f"the shares of GPUs fit as a sum, but not on {present:g} GPUs one by one: no room for "
            f"{', '.join(left)} (left on each: {spaces})"
        )
        yield Fault(file, message, "choose hardware.gpus so that they add up to whole GPUs")


def _gpu_shares(gpus: float) -> list[float]:
    return [1.0] * int(gpus) if gpus >= 1 else [gpus] if gpus else []
