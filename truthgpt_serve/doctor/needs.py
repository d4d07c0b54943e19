"""What given files ask of this machine: their faults, their models' weights, their families.

A model's family says what its configuration needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.checks import resolve_family
from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.config.load import read_file
from truthgpt_serve.config.paths import expand, find_config, must_be_local
from truthgpt_serve.contract import FamilySpec, Probe
from truthgpt_serve.doctor.service import cache_folder, is_offline
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.plan import plan_replica
from truthgpt_serve.validate import CheckedModel, validate_file


@dataclass(frozen=True, slots=True)
class Need:
    """One model of a file.

    Attributes:
        title: File and model name.
        spec: Its family.
        cfg: Its configuration as a nested dict, with `hardware.gpus` decided for this machine.
    """

    title: str
    spec: FamilySpec
    cfg: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileNeeds:
    """What one file asks for.

    Attributes:
        file: As the user named it.
        probes: What does not depend on a family: faults of the file, and the port.
        models: The models that could be read.
        port: Where the service would listen, or None for a model's own file.
    """

    file: str
    probes: list[Probe]
    models: list[Need]
    port: int | None


def read_needs(file: str, num_gpus: int) -> FileNeeds:
    """Checks a file and finds its models.

    Args:
        file: A Serve file or a model's, looked up like any configuration.
        num_gpus: GPUs of this machine.
    """
    report = validate_file(file, machine=True, classes=False)  # their own process imports them
    probes = [Probe(fault.place, False, fault.message, fault.fix) for fault in report.faults]
    probes += [Probe(line, True) for line in report.checked]
    models = []
    for model in report.models:
        try:
            models.append(_need(file, model, num_gpus))
        except ConfigError:
            continue  # the report has the reason
    return FileNeeds(file, probes, models, _port(file))


def _need(file: str, model: CheckedModel, num_gpus: int) -> Need:
    spec = resolve_family(model.config)
    plan = plan_replica(model.config, spec, cluster_gpus=num_gpus)
    return Need(f"{file}: {model.name}" if model.name else file, spec, plan.cfg)


def _port(file: str) -> int | None:
    try:
        data, _ = read_file(find_config(file))
    except ConfigError:
        return None
    if not isinstance(data, Mapping) or "applications" not in data:
        return None
    options = data.get("http_options")
    port = options.get("port", DEFAULT_PORT) if isinstance(options, Mapping) else DEFAULT_PORT
    return port if isinstance(port, int) else None


def probe_weights(need: Need, hub: Probe) -> Probe | None:
    """Whether the weights are here or can be had; None for a family that needs none.

    Args:
        need: The model.
        hub: Whether models can be downloaded.
    """
    name = need.cfg["model"]["name_or_path"]
    if not need.spec.needs_weights or not name:
        return None
    if expand(name).exists():
        return Probe("weights", True, f"{name} is here")
    if must_be_local(name):
        return Probe("weights", False, f"{name} does not exist", "correct model.name_or_path")
    snapshots = cache_folder() / f"models--{name.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return Probe("weights", True, f"{name} is in the cache")
    if hub.works:
        return Probe("weights", True, f"{name} will be downloaded from the hub")
    why = "downloads are switched off" if is_offline() else "the hub does not answer"
    return Probe("weights", False, f"{name} is neither here nor in the cache, and {why}", hub.fix)
