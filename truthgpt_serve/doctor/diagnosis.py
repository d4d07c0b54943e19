"""Puts the probes of machine, service and families together, and says what is at fault.

The probes are in `machine.py` (Python, memory, GPUs), `packages.py`, `service.py` (HAProxy, Ray's
settings, the hub, the port), `needs.py` (weights and faults of files) and, of each family, in
`deployments/<family>/doctor.py`, which `families.py` runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.contract import Probe
from truthgpt_serve.doctor.families import TIME_LIMIT_S, Children, Target, examine
from truthgpt_serve.doctor.machine import probe_hardware, probe_python
from truthgpt_serve.doctor.needs import FileNeeds, Need, probe_weights, read_needs
from truthgpt_serve.doctor.packages import probe_base, probe_versions
from truthgpt_serve.doctor.service import probe_port, probe_service
from truthgpt_serve.registry import MODEL_REGISTRY

MAX_AT_ONCE = 2
"""Families that are tried at the same time: each imports gigabytes, and some compile."""


@dataclass(frozen=True, slots=True)
class Group:
    """Probes under one title.

    Attributes:
        title: What they are about.
        probes: In their order.
        needed: Whether one that does not work is a fault.
    """

    title: str
    probes: tuple[Probe, ...]
    needed: bool = False

    @property
    def faults(self) -> list[Probe]:
        """The probes that should work and do not."""
        return [probe for probe in self.probes if self.needed and not probe.works]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was found out."""

    groups: tuple[Group, ...]

    @property
    def faults(self) -> list[str]:
        """One line for each needed thing that does not work."""
        return [
            f"{group.title}: {probe.name}: {probe.detail}{f' ({probe.fix})' if probe.fix else ''}"
            for group in self.groups
            for probe in group.faults
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns it for programs."""
        return {
            "works": not self.faults,
            "faults": self.faults,
            "groups": [asdict(group) for group in self.groups],
        }


Tell = Callable[[str], None]
"""Is told what is being tried, and how long that took."""


def diagnose(
    files: Sequence[str] = (),
    *,
    families: bool | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    tell: Tell = lambda line: None,
) -> Diagnosis:
    """Tries what works on this machine, or what the files ask for.

    Args:
        files: Serve files and models' files.
        families: Try all that each family offers; by default only without files.
        time_limit_s: Longest time for one family, and for each model of a file.
        tell: Is told how far it is.
    """
    tell("trying Python, hardware, packages, HAProxy, the model hub")
    base = Group("base", (probe_python(), probe_base()), needed=True)
    hardware = tuple(probe_hardware())
    num_gpus = sum(probe.works and probe.name.startswith("GPU ") for probe in hardware)
    needs = [read_needs(file, num_gpus) for file in files]
    ports = [each.port for each in needs if each.port is not None]
    service = tuple(probe_service(ports[0] if ports else DEFAULT_PORT))
    families = not files if families is None else families
    offered, asked = _try_families(needs, families=families, time_limit_s=time_limit_s, tell=tell)
    return Diagnosis(
        (
            base,
            Group("machine", hardware),
            Group("packages", tuple(probe_versions())),
            Group("service", service),
            *offered,
            *_file_groups(needs, asked, hub=next(p for p in service if p.name == "model hub")),
        )
    )


def _try_families(
    needs: Iterable[FileNeeds], *, families: bool, time_limit_s: float, tell: Tell
) -> tuple[list[Group], dict[str, list[Probe]]]:
    """Returns what each family offers, and the probes of each model by its title."""
    models = [model for each in needs for model in each.models if model.spec.doctor_path]
    names = [name for name in MODEL_REGISTRY if _has_doctor(name)] if families else []
    names += [name for name in dict.fromkeys(m.spec.name for m in models) if name not in names]
    offered: list[Group] = []
    asked: dict[str, list[Probe]] = {}
    children = Children()
    with (
        ThreadPoolExecutor(min(MAX_AT_ONCE, len(os.sched_getaffinity(0)))) as threads,
        contextlib.ExitStack() as stack,  # first: the threads wait for their processes
    ):
        stack.callback(children.end)

        def work(name: str) -> list[list[Probe]]:
            wanted: list[Target] = [None] if families else []
            wanted += [model.cfg for model in _of(name, models)]
            started_s = time.monotonic()
            tell(f"trying the family {name}: {_what(families, _of(name, models))}")
            found = examine(name, wanted, time_limit_s=time_limit_s, children=children)
            tell(f"tried the family {name} in {time.monotonic() - started_s:.0f} s")
            return found

        for name, found in zip(names, threads.map(work, names), strict=True):
            if families:
                offered.append(Group(f"family {name}", tuple(found.pop(0))))
            for model, probes in zip(_of(name, models), found, strict=True):
                asked[model.title] = probes
    return offered, asked


def _what(families: bool, models: Sequence[Need]) -> str:
    parts = ["all that it offers (some minutes)"] if families else []
    return " and ".join([*parts, *(model.title for model in models)])


def _of(family: str, models: Iterable[Need]) -> list[Need]:
    return [model for model in models if model.spec.name == family]


def _has_doctor(name: str) -> bool:
    try:
        return MODEL_REGISTRY[name].doctor_path is not None
    except Exception:  # another package's family that does not import is no reason to stop
        return False


def _file_groups(
    needs: Iterable[FileNeeds], asked: dict[str, list[Probe]], *, hub: Probe
) -> Iterable[Group]:
    for each in needs:
        port = [] if each.port is None else [probe_port(each.port)]
        yield Group(each.file, (*each.probes, *port), needed=True)
        for model in each.models:
            weights = probe_weights(model, hub)
            probes = ([weights] if weights else []) + asked.get(model.title, [])
            if probes:
                yield Group(model.title, tuple(probes), needed=True)
