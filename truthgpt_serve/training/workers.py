"""What the workers of a run take of the machine or the cluster, and what it lacks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.hardware.resources import resolve_gpus
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.memory.optimizers import check_optimizer


@dataclass(frozen=True, slots=True)
class Workers:
    """What the workers take of the cluster.

    Attributes:
        number: How many.
        cpus: CPU cores of each.
        gpus: GPUs of each: 0, a fraction or 1.
        accelerator_type: GPU model in Ray's words, or None.
    """

    number: int
    cpus: float
    gpus: float
    accelerator_type: str | None = None

    def describe(self) -> str:
        """Returns them in words, for the plan."""
        noun = "worker" if self.number == 1 else "workers"
        if self.gpus:
            kind = self.accelerator_type or "GPU"
            return f"{self.number} {noun}, {self.gpus:g} {kind} each"
        cores = "core" if self.cpus == 1 else "cores"
        return f"{self.number} {noun} on CPU, {self.cpus:g} {cores} each"


def count_workers(config: ModelConfig) -> int:
    """Returns how many workers there are without `--workers`."""
    gpus = config.hardware.gpus
    return max(1, int(gpus)) if isinstance(gpus, int | float) else 1


def choose_workers(config: ModelConfig, job: TrainingJob, cluster_gpus: float) -> Workers:
    """Returns what the workers take.

    Raises:
        TrainingError: They could not compute what is asked for.
    """
    hardware = config.hardware
    gpus = min(1, resolve_gpus(config, cluster_gpus=cluster_gpus))
    _check_precision(config, gpus)
    place = config.source.at("training", "optimizer")
    check_optimizer(job.cfg["training"], on_cpu=not gpus, place=place)
    return Workers(job.num_workers, max(1, hardware.cpus), gpus, hardware.accelerator_type)


def _check_precision(config: ModelConfig, gpus: float) -> None:
    if config.training.mixed_precision == "fp16" and not gpus:
        place = config.source.at("training", "mixed_precision")
        fix = "write bf16 or no; fp16 needs a GPU"
        raise TrainingError(f"{place}: fp16 does not work on CPU ({fix})")


def find_shortage(config: ModelConfig, workers: Workers, machine_gpus: float) -> str | None:
    """Returns what this machine lacks for the workers, or None: Ray would wait for more nodes.

    Args:
        config: The model's configuration.
        workers: What they take.
        machine_gpus: GPUs of this machine.
    """
    fix = "or set RAY_ADDRESS to a cluster that has them"
    gpus, cores = workers.number * workers.gpus, os.cpu_count() or 1
    if gpus > machine_gpus:
        place = config.source.at("hardware", "gpus")
        has = f"{machine_gpus:g}" if machine_gpus else "none"
        return (
            f"{place}: {gpus:g} GPUs are needed, and this machine has {has} "
            f"(lower it or --workers, {fix})"
        )
    if workers.number > cores:
        return (
            f"--workers: {workers.number:,} workers need a core each, and this machine has {cores} "
            f"(lower it, {fix})"
        )
    return None
