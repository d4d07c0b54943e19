"""What Serve says of applications; fails here, with a reason, when the schema of it moves."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve import schema
from ray.serve._private.common import ReplicaState

from truthgpt_serve.cluster.state import CARD_KEY, parse_details

MOVED = "Ray's interface moved: adapt truthgpt_serve/cluster/state.py"


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (schema.ServeInstanceDetails, {"applications", "http_options"}),
        (
            schema.ApplicationDetails,
            {
                "name", "route_prefix", "status", "message", "deployed_app_config",
                "deployments", "last_deployed_time_s",
            },
        ),
        (schema.ServeApplicationSchema, {"route_prefix"}),
        (schema.DeploymentDetails, {"deployment_config", "replicas"}),
        (schema.DeploymentSchema, {"user_config"}),
        (schema.ReplicaDetails, {"state", "node_id", "start_time_s"}),
    ],
)  # fmt: skip
def test_the_fields_that_are_read_are_in_rays_schema(model: Any, fields: set[str]) -> None:
    assert fields <= model.model_fields.keys(), MOVED


def test_statuses_are_those_that_the_router_knows() -> None:
    known = {"NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING"}
    assert {status.value for status in schema.ApplicationStatus} == known, MOVED


def test_details_are_read() -> None:
    replicas = [{"state": "RUNNING"}, {"state": "STARTING"}]
    model = {
        "name": "m",
        "route_prefix": None,
        "status": "DEPLOYING",
        "message": "wait",
        "deployed_app_config": {"route_prefix": "/models/m"},
        "last_deployed_time_s": 7,
        "deployments": {
            "ModelReplica": {
                "deployment_config": {"user_config": {CARD_KEY: {"task": "t"}}},
                "replicas": replicas,
            }
        },
    }
    state = parse_details({"applications": {"m": model}, "http_options": {"port": 81}})
    application = state.applications["m"]
    assert (state.proxy_host, state.proxy_port) == ("127.0.0.1", 81)
    assert (application.route_prefix, application.status) == ("/models/m", "DEPLOYING")
    assert (application.num_running_replicas, application.card) == (1, {"task": "t"})
    assert (application.message, application.deployed_at_s) == ("wait", 7.0)


@pytest.mark.parametrize(
    ("listens_on", "reached_at"),
    [
        (None, "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "127.0.0.1"),
        ("[::]", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("[::1]", "::1"),
    ],
)
def test_the_proxy_is_reached_where_it_listens(listens_on: str | None, reached_at: str) -> None:
    options = {"port": 81} if listens_on is None else {"port": 81, "host": listens_on}
    state = parse_details({"applications": {}, "http_options": options})
    assert state.proxy_host == reached_at
    assert parse_details({"applications": {}, "http_options": None}).proxy_host == "127.0.0.1"


def test_what_waits_for_resources_is_said_in_words() -> None:
    waiting = {"state": "STARTING", "node_id": None, "start_time_s": 1.0}
    placed = {**waiting, "node_id": "abc"}
    fresh = {**waiting, "start_time_s": 1e12}

    def deployment(*replicas: dict[str, Any], **config: Any) -> dict[str, Any]:
        return {"replicas": list(replicas), "deployment_config": config}

    def state(**deployments: dict[str, Any]) -> str | None:
        app = {"status": "DEPLOYING", "route_prefix": "/models/m", "deployments": deployments}
        found = parse_details(
            {"applications": {"m": app}},
            lambda: ({"CPU": 8.0, "GPU": 1.0}, {"CPU": 2.5}),
        )
        return found.applications["m"].waits_for

    options = {"num_cpus": 4, "num_gpus": 0}
    assert state(D=deployment(placed, fresh, ray_actor_options=options)) is None
    assert state(D=deployment(waiting, placed, ray_actor_options=options)) == (
        "1 replica waits for resources: each needs 4 CPU (the cluster has 8, 2.5 free)"
    )
    bundles = [{"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0}]
    assert state(D=deployment(waiting, waiting, placement_group_bundles=bundles)) == (
        "2 replicas wait for resources: each needs 2 GPU (the cluster has 1, 0 free)"
    )
    typed = {"num_cpus": 0, "num_gpus": 0.5, "accelerator_type": "H100", "resources": {"disk": 1}}
    assert state(D=deployment(waiting, ray_actor_options=typed)) == (
        "1 replica waits for resources: each needs 0.5 GPU (the cluster has 1, 0 free), "
        "1 disk (the cluster has 0, 0 free), a GPU of type H100 (the cluster has none)"
    )
    assert state(D=deployment(waiting)) == "1 replica waits for a node"


def test_the_cluster_is_asked_only_when_something_waits() -> None:
    app = {"status": "RUNNING", "route_prefix": "/", "deployments": {}}

    def fail() -> tuple[dict[str, float], dict[str, float]]:
        raise AssertionError

    parse_details({"applications": {"m": app}}, fail)


@pytest.mark.parametrize(
    ("states", "status", "shown", "running"),
    [
        (["RECOVERING", "RUNNING"], "DEPLOYING", "RUNNING", 2),
        (["RECOVERING", "STARTING"], "DEPLOYING", "DEPLOYING", 1),
        (["RUNNING"], "DEPLOYING", "DEPLOYING", 1),
        (["RECOVERING"], "DELETING", "DELETING", 1),
    ],
)
def test_a_new_controller_changes_nothing_for_clients(
    states: list[str], status: str, shown: str, running: int
) -> None:
    assert "RECOVERING" in {state.value for state in ReplicaState}, MOVED
    deployment = {"replicas": [{"state": state, "node_id": "n"} for state in states]}
    app = {"status": status, "route_prefix": "/models/m", "deployments": {"D": deployment}}
    found = parse_details({"applications": {"m": app}}).applications["m"]
    assert (found.status, found.num_running_replicas) == (shown, running)


def test_the_nodes_that_have_a_proxy_are_known_by_their_addresses() -> None:
    proxies = {"a": {"node_ip": "192.0.2.1"}, "b": {"node_ip": "192.0.2.2"}, "c": {"node_ip": None}}
    found = parse_details({"applications": {}, "http_options": None, "proxies": proxies})
    assert found.node_hosts == {"192.0.2.1", "192.0.2.2"}
    assert not parse_details({"applications": {}}).node_hosts
