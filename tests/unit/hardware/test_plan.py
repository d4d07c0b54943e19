"""From configurations to Ray Serve's deployment options, checked by Ray's own classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ray import serve
from ray.serve.schema import RayActorOptionsSchema

from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.hardware.plan import (
    ReplicaPlan,
    plan_replica,
    request_limits,
)


class OnlyInfer:
    def load(self, cfg: dict[str, Any]) -> None:
        self.cfg = cfg

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


class Streams(OnlyInfer):
    def stream(self, inputs: dict[str, Any]) -> Any:
        yield inputs


class Batches(OnlyInfer):
    def infer_batch(self, batch: list[dict[str, Any]]) -> Any:
        return batch


PLAIN = FamilySpec(name="plain", class_path="tests:OnlyInfer", model_class=OnlyInfer)
WIDE = FamilySpec(
    name="wide",
    class_path="no_such_engine:Wide",
    tensor_parallel=True,
    max_ongoing_requests=lambda cfg: cfg["serving"]["engine"].get("max_num_seqs", 256),
)


def plan(spec: FamilySpec = PLAIN, **sections: Any) -> ReplicaPlan:
    return plan_replica(load_model_config(sections), spec, cluster_gpus=0, environ={})


def accept(options: dict[str, Any]) -> Any:
    """Returns the deployment that Ray Serve makes of the options, without starting anything."""
    deployment: Any = serve.deployment(OnlyInfer)
    return deployment.options(**options)


def test_the_family_sees_the_decision() -> None:
    seen: list[object] = []

    def limit(cfg: Mapping[str, Any]) -> int:
        seen.append(cfg["hardware"]["gpus"])
        return 5

    spec = FamilySpec(name="x", class_path="no_such:X", max_ongoing_requests=limit)
    config = load_model_config({"hardware": {"accelerator_type": "H100"}})
    for cluster_gpus in (0, 8):
        replica = plan_replica(config, spec, cluster_gpus=cluster_gpus, environ={})
        assert replica.cfg["hardware"]["gpus"] == replica.gpus
        # The replica reads its configuration once more.
        assert load_model_config(replica.cfg).to_cfg() == replica.cfg
    assert seen == [0, 1]
    assert config.hardware.gpus == "auto"


def test_fraction_passes_through() -> None:
    hardware = {"gpus": 0.4, "cpus": 2, "accelerator_type": "H100"}
    replica = plan(WIDE, hardware=hardware)
    assert replica.ray_actor_options == {
        "num_cpus": 2,
        "num_gpus": 0.4,
        "accelerator_type": "H100",
    }
    assert replica.placement_group_bundles is None
    deployment = accept(replica.deployment_options())
    assert deployment.ray_actor_options["num_gpus"] == 0.4
    assert deployment.ray_actor_options["accelerator_type"] == "H100"


def test_several_gpus_make_a_placement_group() -> None:
    replica = plan(WIDE, hardware={"gpus": 3, "cpus": 2, "accelerator_type": "H100"})
    gpu = {"GPU": 1, "accelerator_type:H100": 0.001}
    assert replica.ray_actor_options == {"num_cpus": 2, "num_gpus": 0}
    assert replica.placement_group_bundles == [{"CPU": 2, **gpu}, gpu, gpu]
    assert replica.gpus == 3
    options = accept(replica.deployment_options())._replica_config
    assert options.placement_group_bundles == replica.placement_group_bundles
    assert options.placement_group_strategy == "STRICT_PACK"


def test_labels_choose_the_node() -> None:
    labels = {"zone": "eu-1", "ray.io/accelerator-type": "in(A100, H100)"}
    replica = plan(PLAIN, hardware={"label_selector": labels})
    assert replica.ray_actor_options == {"num_cpus": 1, "num_gpus": 0, "label_selector": labels}
    deployment = accept(replica.deployment_options())
    assert deployment.ray_actor_options["label_selector"] == labels
    # What an operator may write under Serve's own `deployments:` is held to the same rules.
    RayActorOptionsSchema(label_selector=labels)


def test_an_engine_over_several_nodes_asks_for_its_placement_group() -> None:
    hardware = {"gpus": 4, "cpus": 3, "span_nodes": True, "label_selector": {"zone": "!eu-1"}}
    replica = plan(WIDE, hardware=hardware)
    assert replica.ray_actor_options == {"num_cpus": 3, "num_gpus": 0}
    options = accept(replica.deployment_options())._replica_config
    gpu = {"GPU": 1}
    assert options.placement_group_bundles == [{"CPU": 3, **gpu}, gpu, gpu, gpu]
    assert options.placement_group_strategy == "PACK"
    assert options.placement_group_bundle_label_selector == [{"zone": "!eu-1"}] * 4


def test_replicas_on_one_node_are_limited() -> None:
    replica = plan(PLAIN, serving={"num_replicas": 3, "max_replicas_per_node": 1})
    options = accept(replica.deployment_options())._replica_config
    assert options.max_replicas_per_node == 1
    config = load_model_config(
        {
            "model": {"family": "vllm", "name_or_path": "org/model"},
            "hardware": {"gpus": 4},
            "serving": {"max_replicas_per_node": 1},
        }
    )
    assert [str(fault) for fault in check_model(config)] == [
        "configuration: serving.max_replicas_per_node: has no effect on engines of 4 GPUs, which "
        "Ray places as a group (remove it)"
    ]


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ({"label_selector": {"-zone": "a"}}, r"label_selector\.-zone: '-zone' is not usable here"),
        ({"label_selector": {"zone": "in(a"}}, r"label_selector\.zone: 'in\(a' is not usable here"),
        ({"label_selector": {"zone": 5}}, r"label_selector\.zone: must be a string, not 5"),
        ({"span_nodes": True}, r"span_nodes: has no effect with gpus: auto"),
        ({"span_nodes": True, "gpus": 1}, r"span_nodes: has no effect with gpus: 1"),
    ],
)
def test_faulty_placement(hardware: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model_config({"hardware": hardware})


def test_only_an_engine_of_several_gpus_spans_nodes() -> None:
    config = load_model_config(
        {"model": {"family": "echo"}, "hardware": {"gpus": 2, "span_nodes": True}}
    )
    found = [str(fault) for fault in check_model(config)]
    assert found == [
        "configuration: hardware.span_nodes: family 'echo' has no engine that spans nodes "
        "(remove it, or use family vllm)"
    ]


def test_several_gpus_of_an_ordinary_family_belong_to_the_actor() -> None:
    replica = plan(PLAIN, hardware={"gpus": 2})
    assert replica.ray_actor_options == {"num_cpus": 1, "num_gpus": 2}
    assert replica.placement_group_bundles is None
    accept(replica.deployment_options())


@pytest.mark.parametrize(("cls", "limit"), [(OnlyInfer, 1), (Streams, 64), (Batches, 64)])
def test_limit_follows_the_class(cls: type, limit: int) -> None:
    spec = FamilySpec(name="x", class_path="tests:x", model_class=cls)
    replica = plan(spec)
    assert (replica.max_ongoing_requests, replica.max_queued_requests) == (limit, 2 * limit)


def test_open_gpus_are_decided_before_the_family_is_asked() -> None:
    """As in a replica, whose configuration says what it was given: both must come to the same."""
    spec = FamilySpec(
        name="x",
        class_path="no_such:X",
        max_ongoing_requests=lambda cfg: {0: 3, 1: 7}[cfg["hardware"]["gpus"]],
    )
    config = load_model_config({})
    for accelerator, ongoing in (("cpu", 3), ("gpu", 7)):
        environ = {"TRUTHGPT_ACCELERATOR": accelerator}
        assert request_limits(config, spec, environ=environ) == (ongoing, 2 * ongoing)
        replica = plan_replica(config, spec, environ=environ)
        assert request_limits(load_model_config(replica.cfg), spec, environ={}) == (
            ongoing,
            2 * ongoing,
        )
        assert replica.max_ongoing_requests == ongoing


CPU_NODES = {"TRUTHGPT_CPU_NODE_LABEL": "truthgpt.io/gpu=none"}


@pytest.mark.parametrize(
    ("spec", "hardware", "expected"),
    [
        (PLAIN, {"gpus": 0}, {"truthgpt.io/gpu": "none"}),
        (PLAIN, {}, {"truthgpt.io/gpu": "none"}),
        (PLAIN, {"gpus": 0.5}, None),
        (PLAIN, {"gpus": 1}, None),
        (WIDE, {"gpus": 2}, None),
        (PLAIN, {"gpus": 0, "label_selector": {"zone": "eu"}}, {"zone": "eu"}),
    ],
)
def test_only_replicas_without_gpus_are_kept_on_cpu_nodes(
    spec: FamilySpec, hardware: dict[str, Any], expected: dict[str, str] | None
) -> None:
    config = load_model_config({"hardware": hardware})
    replica = plan_replica(config, spec, environ=CPU_NODES)
    assert replica.ray_actor_options.get("label_selector") == expected
    RayActorOptionsSchema(**replica.ray_actor_options)


def test_limit_of_the_engine_imports_no_class() -> None:
    assert plan(WIDE).max_ongoing_requests == 256
    serving = {"engine": {"max_num_seqs": 48}}
    replica = plan(WIDE, serving=serving)
    assert (replica.max_ongoing_requests, replica.max_queued_requests) == (48, 96)


def test_given_limits_win() -> None:
    replica = plan(WIDE, serving={"max_ongoing_requests": 7, "max_queued_requests": 9})
    # With a queue in the replica, Ray's own in front of it never refuses what fits in there.
    options = replica.deployment_options(has_queue=True)
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (32, 16)
    assert (replica.max_ongoing_requests, replica.max_queued_requests) == (7, 9)
    deployment = accept(replica.deployment_options())
    assert (deployment.max_ongoing_requests, deployment.max_queued_requests) == (7, 9)


def test_fixed_replicas() -> None:
    assert plan().deployment_options()["num_replicas"] == 1
    options = plan(serving={"num_replicas": 3}).deployment_options()
    assert accept(options).num_replicas == 3


def test_autoscaling() -> None:
    scaling = {"min_replicas": 0, "max_replicas": 4, "downscale_to_zero_delay_s": 5}
    replica = plan(WIDE, serving={"max_ongoing_requests": 10, "autoscaling": scaling})
    options = replica.deployment_options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 4,
        "target_ongoing_requests": 7.0,
        "upscale_delay_s": 30,
        "downscale_delay_s": 600,
        "downscale_to_zero_delay_s": 5,
        "metrics_interval_s": 2.0,  # for the first request
    }
    config = accept(options)._deployment_config.autoscaling_config
    assert config.max_replicas == 4
    assert config.target_ongoing_requests == 7.0
    assert config.downscale_to_zero_delay_s == 5


def test_autoscaling_on_work() -> None:
    scaling = {"min_replicas": 0, "max_replicas": 4, "target_queue_s": 8, "downscale_delay_s": 90}
    options = plan(WIDE, serving={"autoscaling": scaling}).deployment_options()
    assert options["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 4,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "metrics_interval_s": 2.0,
        "look_back_period_s": 10.0,
        "policy": {
            "policy_function": "truthgpt_serve.autoscaling.policy:WorkPolicy",
            "policy_kwargs": {
                "target_queue_s": 8,
                "upscale_delay_s": 0,
                "downscale_delay_s": 90,
                "downscale_to_zero_delay_s": 90,
            },
        },
    }
    config = accept(options)._deployment_config.autoscaling_config
    assert not config.policy.is_default_policy_function()
    assert config.policy.get_policy().__name__ == "WorkPolicy"


def test_shutdown_outlasts_the_longest_request() -> None:
    assert plan().graceful_shutdown_timeout_s > 600
    replica = plan(serving={"max_request_s": 30, "health_check_period_s": 2})
    options = replica.deployment_options()
    assert 30 < options["graceful_shutdown_timeout_s"] < 60
    assert options["health_check_period_s"] == 2
    assert options["backpressure_config"] == {"status_code": 429, "retry_after_s": 1}
