"""What a replica takes of a cluster: its GPUs, and the nodes that it may run on."""

from __future__ import annotations

import pytest

from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.resources import cpu_node_labels, resolve_gpus


@pytest.mark.parametrize(
    ("environ", "cluster_gpus", "gpus"),
    [
        ({}, 0.0, 0),
        ({}, 8.0, 1),
        ({}, 0.5, 0),
        ({"TRUTHGPT_ACCELERATOR": "cpu"}, 8.0, 0),
        ({"TRUTHGPT_ACCELERATOR": "gpu"}, 0.0, 1),
        ({"TRUTHGPT_ACCELERATOR": ""}, 8.0, 1),
    ],
)
def test_auto_is_decided_by_variable_then_cluster(
    environ: dict[str, str], cluster_gpus: float, gpus: int
) -> None:
    config = load_model_config({})
    assert resolve_gpus(config, cluster_gpus=cluster_gpus, environ=environ) == gpus


def test_auto_is_nothing_for_what_computes_elsewhere() -> None:
    spec = FamilySpec(name="far", class_path="tests:x", uses_gpus=False)
    assert resolve_gpus(load_model_config({}), spec, cluster_gpus=8, environ={}) == 0


def test_variable_has_two_values() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_gpus(load_model_config({}), cluster_gpus=0, environ={"TRUTHGPT_ACCELERATOR": "tpu"})
    assert str(caught.value) == (
        "environment variable TRUTHGPT_ACCELERATOR: must be cpu or gpu, not 'tpu' "
        "(unset it to decide by the cluster's resources)"
    )


def test_explicit_gpus_and_device_come_first() -> None:
    environ = {"TRUTHGPT_ACCELERATOR": "gpu"}
    for hardware, gpus in (
        ({"gpus": 0}, 0),
        ({"gpus": 0.25}, 0.25),
        ({"gpus": 2}, 2),
        ({"device": "cpu"}, 0),
        ({"device": "cuda"}, 1),
    ):
        config = load_model_config({"hardware": hardware})
        assert resolve_gpus(config, cluster_gpus=0, environ=environ) == gpus


@pytest.mark.parametrize("value", ["none", "=none", "truthgpt.io/gpu="])
def test_a_label_that_is_none_is_a_fault(value: str) -> None:
    with pytest.raises(ConfigError, match="TRUTHGPT_CPU_NODE_LABEL: must be key=value"):
        cpu_node_labels({"TRUTHGPT_CPU_NODE_LABEL": value})
