"""What this machine has, and whether a service's models can run on it.

Ray's cluster may have more nodes. Only `check_machine` imports engines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from truthgpt_serve.checks import resolve_family
from truthgpt_serve.cluster.machine import DriverError, probe_gpus
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.hardware.plan import plan_replica
from truthgpt_serve.hardware.service_plan import plan_playground, plan_router
from truthgpt_serve.validate.capacity import demand_of, find_shortages
from truthgpt_serve.validate.ray_settings import RaySettings
from truthgpt_serve.validate.report import CheckedModel, Report

DOES_NOT_FIT = "this machine alone is too small: "
"""How a note about it begins."""
_NO_LIMITS = (1, 1)
"""Requests take no room on a machine."""
_MEMORY_SHARE = 0.7
"""Share of the free memory that Ray hands out; the rest is its object store."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of one machine.

    Attributes:
        cpus: Processor cores that this process may use.
        gpus: Name of each visible GPU, such as `NVIDIA H100 80GB HBM3`.
        memory: Bytes that Ray hands out to replicas that ask for memory.
    """

    cpus: int
    gpus: tuple[str, ...]
    memory: float = float("inf")

    def resources(self) -> dict[str, float]:
        """Returns what Ray would have to hand out, by its names."""
        amounts = {"CPU": self.cpus, "GPU": len(self.gpus), "memory": self.memory}
        return {name: float(amount) for name, amount in amounts.items()}


def probe_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Returns this machine's hardware; no GPU where the NVIDIA driver does not answer."""
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        gpus=_gpu_names(environ),
        memory=psutil.virtual_memory().available * _MEMORY_SHARE,
    )


def _gpu_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    try:
        names = tuple(gpu.name for gpu in probe_gpus(environ))
    except DriverError:
        return ()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    return names[: len([part for part in visible.split(",") if part.strip()])]


def check_machine(report: Report, file: str, *, classes: bool = True) -> None:
    """Adds to `report` what the models ask for and this machine does not have.

    Args:
        report: With the models and routers that could be read.
        file: Name of the file that was checked, for faults of the service as a whole.
        classes: Whether to import the classes of families that can be examined in another process.
    """
    machine = probe_machine()
    for model in report.models:
        report.add(_check_class(model, examined=classes), model.place)
    report.add(_find_shortages(report, machine, file))
    names = ", ".join(machine.gpus) or "none"
    report.notes.append(f"this machine: {machine.cpus} CPU cores, GPUs: {names}")


def note_shortages(report: Report, file: str) -> None:
    """Notes in `report` what would wait if this machine were the whole cluster."""
    for fault in _find_shortages(report, probe_machine(), file):
        report.notes.append(f"{DOES_NOT_FIT}{fault}")


def _find_shortages(report: Report, machine: Machine, file: str) -> list[Fault]:
    faults: list[Fault] = []
    haproxy = RaySettings().haproxy
    demands = [
        demand_of(
            plan_router(one.config, haproxy=haproxy), "router", one.place.at(), one.deployment
        )
        for one in report.routers
    ]
    demands += [
        demand_of(plan_playground(one.config), "playground", one.place.at(), one.deployment)
        for one in report.playgrounds
    ]
    for model in report.models:
        try:
            spec = resolve_family(model.config)
        except ConfigError:
            continue  # the check of the model reports it
        try:
            gpus = len(machine.gpus)
            plan = plan_replica(model.config, spec, cluster_gpus=gpus, limits=_NO_LIMITS)
        except ConfigError as error:
            faults += error.faults
            continue
        own = model.place.hidden.hide_faults(_check_replica(model, plan.gpus, machine))
        faults += own
        demand = demand_of(plan, model.name or "it", model.place.at("hardware"), model.deployment)
        if not own:
            demands.append(demand)
    return [*faults, *find_shortages(demands, machine.resources(), file)]


def _check_replica(model: CheckedModel, gpus: float, machine: Machine) -> Iterator[Fault]:
    hardware, place = model.config.hardware, model.place
    if hardware.cpus > machine.cpus:
        message = f"{hardware.cpus:g} is more than this machine has, {machine.cpus}"
        yield Fault(place.at("hardware", "cpus"), message)
    if gpus > len(machine.gpus):
        message = f"{gpus:g} is more than this machine has, {len(machine.gpus)}"
        yield Fault(place.at("hardware", "gpus"), message)
    kind = hardware.accelerator_type
    if kind is not None and not any(kind in name for name in machine.gpus):
        names = ", ".join(machine.gpus) or "none"
        message = f"{kind!r} is none of this machine's GPUs: {names}"
        yield Fault(place.at("hardware", "accelerator_type"), message)


def _check_class(model: CheckedModel, *, examined: bool) -> list[Fault]:
    try:
        spec = resolve_family(model.config)
        if spec.doctor_path is None or examined:
            spec.load_class()
    except ConfigError:
        return []  # the check of the model reports it
    except Exception as error:  # a family's import may fail in any way
        message = f"cannot be imported here ({type(error).__name__}: {error})"
        fix = "install the extra that brings its engine"
        return [Fault(model.place.at("model", "family"), message, fix)]
    return []
