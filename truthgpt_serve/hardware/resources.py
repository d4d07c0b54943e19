"""What of a cluster a replica takes: its GPUs, with `auto` decided, and the nodes it may run on."""

from __future__ import annotations

import os
from collections.abc import Mapping

from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError, Fault

ACCELERATOR_VARIABLE = "TRUTHGPT_ACCELERATOR"
CPU_NODE_VARIABLE = "TRUTHGPT_CPU_NODE_LABEL"


def resolve_gpus(
    config: ModelConfig,
    spec: FamilySpec | None = None,
    *,
    cluster_gpus: float,
    environ: Mapping[str, str] = os.environ,
) -> float:
    """Returns the GPUs of one replica, with `auto` decided.

    Args:
        config: The model's configuration.
        spec: Its family, where it is known: `auto` is 0 for one that uses none.
        cluster_gpus: GPUs of the whole cluster. The host that builds the application may have none.
        environ: `TRUTHGPT_ACCELERATOR=cpu|gpu` in it decides before the cluster does.

    Raises:
        ConfigError: `TRUTHGPT_ACCELERATOR` has another value.
    """
    if spec is not None and not spec.uses_gpus and config.hardware.gpus == "auto":
        return 0
    gpus, device = config.hardware.gpus, config.hardware.device
    if isinstance(gpus, int | float):
        return gpus
    if device != "auto":
        return 1 if device == "cuda" else 0
    wanted = environ.get(ACCELERATOR_VARIABLE, "")
    if wanted not in ("", "cpu", "gpu"):
        message = f"must be cpu or gpu, not {wanted!r}"
        fix = "unset it to decide by the cluster's resources"
        raise ConfigError([Fault(f"environment variable {ACCELERATOR_VARIABLE}", message, fix)])
    if wanted:
        return 1 if wanted == "gpu" else 0
    return 1 if cluster_gpus >= 1 else 0


def cpu_node_labels(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the label of the nodes where replicas without a GPU run; else they run anywhere.

    Ray spreads replicas over all nodes, and one without a GPU keeps a GPU node from going idle.

    Args:
        environ: `TRUTHGPT_CPU_NODE_LABEL=key=value` in it, as a cluster with GPU nodes has it.

    Raises:
        ConfigError: The variable has another form.
    """
    written = environ.get(CPU_NODE_VARIABLE, "")
    if not written:
        return {}
    key, _, value = written.partition("=")
    if not key or not value:
        fix = "write a label of the nodes, or unset it: such replicas then run on any node"
        message = f"must be key=value, not {written!r}"
        raise ConfigError([Fault(f"environment variable {CPU_NODE_VARIABLE}", message, fix)])
    return {key: value}
