"""What this machine has, and whether a service's models can run on it.

Knows nothing of the cluster: Ray may have more nodes. Only `check_machine` imports engines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from truthgpt_serve.checks import resolve_family
from truthgpt_serve.config import ModelConfig
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.resources import resolve_gpus
from truthgpt_serve.validate.report import CheckedModel, Report

_PROBE_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware of one machine.

    Attributes:
        cpus: Processor cores that this process may use.
        gpus: Name of each visible GPU, such as `NVIDIA H100 80GB HBM3`.
    """

    cpus: int
    gpus: tuple[str, ...]


def probe_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Returns this machine's hardware; no GPU where the NVIDIA driver does not answer."""
    return Machine(cpus=len(os.sched_getaffinity(0)), gpus=_gpu_names(environ))


def _gpu_names(environ: Mapping[str, str]) -> tuple[str, ...]:
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        return ()
    try:
        answer = subprocess.run(
            [command, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if answer.returncode != 0:
        return ()
    names = tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    return names[: len([part for part in visible.split(",") if part.strip()])]


def check_machine(report: Report, file: str) -> None:
    """Adds to `report` what the models ask for and this machine does not have.

    Args:
        report: With the models and routers that could be read.
        file: Name of the file that was checked, for faults of the service as a whole.
    """
    machine = probe_machine()
    cpus = sum(router.cpus * router.num_replicas for router in report.routers)
    gpus = 0.0
    for model in report.models:
        report.add(_check_class(model))
        try:
            spec = resolve_family(model.config)
        except ConfigError:
            continue  # the check of the model reports it
        try:
            wanted = resolve_gpus(model.config, spec, cluster_gpus=len(machine.gpus))
        except ConfigError as error:
            report.add(error.faults)
            continue
        report.add(_check_replica(model, wanted, machine))
        replicas = _first_replicas(model.config)
        cpus += replicas * model.config.hardware.cpus
        gpus += replicas * wanted
    if len(report.models) > 1:
        report.add(_check_total(file, "CPU cores", cpus, machine.cpus))
        report.add(_check_total(file, "GPUs", gpus, len(machine.gpus)))
    names = ", ".join(machine.gpus) or "none"
    report.notes.append(f"this machine: {machine.cpus} CPU cores, GPUs: {names}")


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


def _check_total(file: str, what: str, needed: float, present: int) -> list[Fault]:
    if needed <= present:
        return []
    message = f"all replicas together need {needed:g} {what}; this machine has {present}"
    fix = "lower hardware.cpus or hardware.gpus, or add nodes to the cluster"
    return [Fault(file, message, fix)]


def _check_class(model: CheckedModel) -> list[Fault]:
    try:
        resolve_family(model.config).load_class()
    except ConfigError:
        return []  # the check of the model reports it
    except Exception as error:  # a family's import may fail in any way
        message = f"cannot be imported here ({type(error).__name__}: {error})"
        fix = "install the extra that brings its engine"
        return [Fault(model.place.at("model", "family"), message, fix)]
    return []


def _first_replicas(config: ModelConfig) -> int:
    scaling = config.serving.autoscaling
    if scaling is None:
        return config.serving.num_replicas or 1
    return scaling.min_replicas if scaling.initial_replicas is None else scaling.initial_replicas
