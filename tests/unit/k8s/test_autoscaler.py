"""What Ray's own autoscaler makes of the manifests: its view, and which nodes it would start."""

from __future__ import annotations

from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated import common_pb2

from tests.support.k8s_links import gpu_groups
from tests.support.k8s_manifests import (
    OVERLAYS,
    REMOVE,
    Manifest,
    build,
    one,
    parse,
    run_kustomize,
    spoiled,
    write_overlay,
)
from truthgpt_serve.hardware.resources import cpu_node_labels

GPUS = tuple(f"components/gpu-{name}" for name in gpu_groups())
GROUP = "spec.rayClusterConfig.workerGroupSpecs.1"
CONTAINER = f"{GROUP}.template.spec.containers.0"


def view(service: Manifest) -> dict[str, Any]:
    """Returns what Ray's autoscaler reads from the RayCluster that the operator makes."""
    cluster = {
        "metadata": {"name": f"{service['metadata']['name']}-abcde", "namespace": "truthgpt"},
        "spec": service["spec"]["rayClusterConfig"],
    }
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(cluster)
    return derived


def started(
    service: Manifest, resources: dict[str, float], labels: dict[str, str] | None = None
) -> dict[str, int] | None:
    """Returns the nodes that Ray starts for one actor in an empty cluster, or None: it never fits.

    Nodes that are always there (minReplicas) are left out.
    """
    config = AutoscalingConfig(view(service), skip_content_hash=True)
    operators = common_pb2.DESCRIPTOR.enum_types_by_name["LabelSelectorOperator"]
    operator = operators.values_by_name["LABEL_OPERATOR_IN"].number
    selector = [(key, operator, [value]) for key, value in (labels or {}).items()]
    demand = ResourceRequestUtil.make(resources, label_selectors=[selector] if labels else None)
    types = config.get_node_type_configs()
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([demand]),
        )
    )
    if reply.infeasible_resource_requests:
        return None
    launched = {item.instance_type: item.count for item in reply.to_launch}
    extra = {name: count - types[name].min_worker_nodes for name, count in launched.items()}
    return {name: count for name, count in extra.items() if count}


@pytest.fixture
def service(tmp_path: Any) -> Manifest:
    done = run_kustomize(write_overlay(tmp_path, GPUS))
    assert done.returncode == 0, done.stderr
    return one(parse(done.stdout), "RayService")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_reads_every_overlay(overlay: str) -> None:
    service = one(build(overlay), "RayService")
    types = view(service)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        read = types[group["groupName"]]
        assert (read["min_workers"], read["max_workers"]) == (
            group["minReplicas"],
            group["maxReplicas"],
        )
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert read["resources"]["CPU"] == int(limits["cpu"])
        assert read["resources"]["memory"] == int(limits["memory"].removesuffix("Gi")) << 30
        assert read["resources"].get("GPU", 0) == int(limits.get("nvidia.com/gpu", 0))


def test_the_view_has_labels_and_timeouts_of_gpu_groups(service: Manifest) -> None:
    derived = view(service)
    assert derived["idle_timeout_minutes"] == 5
    for gpu in gpu_groups():
        group = derived["available_node_types"][f"gpu-{gpu}"]
        assert group["labels"] == {"truthgpt.io/gpu": gpu}
        assert group["idle_timeout_s"] == 600
        assert group["min_workers"] == 0


@pytest.mark.parametrize("gpu", list(gpu_groups()))
def test_a_labeled_model_starts_its_gpu_from_zero(service: Manifest, gpu: str) -> None:
    found = started(service, {"CPU": 1, "GPU": 1}, {"truthgpt.io/gpu": gpu})
    assert found == {f"gpu-{gpu}": 1}


def test_a_model_without_gpus_starts_none(service: Manifest) -> None:
    assert started(service, {"CPU": 1}) == {}


def test_the_label_of_cpu_nodes_starts_no_gpu(service: Manifest) -> None:
    """By CPUs alone a node with GPUs would do, and then never be idle."""
    labels = cpu_node_labels({"TRUTHGPT_CPU_NODE_LABEL": "truthgpt.io/gpu=none"})
    assert started(service, {"CPU": 6}) is not None
    assert started(service, {"CPU": 6}, labels) is None
    assert started(service, {"CPU": 3}, labels) == {}


def test_an_accelerator_type_does_not_start_from_zero(service: Manifest) -> None:
    assert started(service, {"GPU": 1, "accelerator_type:L4": 0.001}) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{GROUP}.labels", {"truthgpt.io/gpu": "l4x"}),
        (f"{GROUP}.labels", REMOVE),
        (f"{GROUP}.maxReplicas", 0),
        (f"{CONTAINER}.resources.limits", {"cpu": "7", "memory": "28Gi"}),
        (f"{GROUP}.rayStartParams.num-gpus", "0"),
    ],
)
def test_mistakes_keep_the_gpu_from_starting(service: Manifest, path: str, value: Any) -> None:
    wrong = spoiled(service, path, value)
    if path.endswith("limits"):
        wrong = spoiled(wrong, f"{CONTAINER}.resources.requests", value)
    assert started(wrong, {"CPU": 1, "GPU": 1}, {"truthgpt.io/gpu": "l4"}) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{GROUP}.labels", {"truthgpt.io/gpu": "-l4"}),
        (f"{CONTAINER}.resources", {}),
        (f"{GROUP}.minReplicas", REMOVE),
        (f"{GROUP}.rayStartParams.num-gpus", "one"),
    ],
)
def test_mistakes_that_ray_cannot_read_are_found(service: Manifest, path: str, value: Any) -> None:
    with pytest.raises((KeyError, ValueError)):
        view(spoiled(service, path, value))
