"""The one place that goes beyond Ray's public API: fails here, with a reason, when Ray moves."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.serve import context
from ray.serve._private.client import ServeControllerClient
from ray.serve._private.common import DeploymentID, RunningReplicaInfo
from ray.serve._private.controller import ServeController

from truthgpt_serve.cluster import controller
from truthgpt_serve.cluster.controller import fetch_serve_state

MOVED = "Ray's interface moved: adapt truthgpt_serve/cluster/controller.py"


def test_the_function_that_finds_serve_is_where_it_was() -> None:
    assert hasattr(context, "_get_global_client"), MOVED
    parameters = inspect.signature(context._get_global_client).parameters
    assert "raise_if_no_controller_running" in parameters, MOVED
    assert not inspect.signature(ServeControllerClient.get_serve_details).parameters.keys() - {
        "self",
        "source",
    }, MOVED
    assert hasattr(ServeController, "_all_running_replicas"), MOVED
    assert "replica_id" in RunningReplicaInfo.__dataclass_fields__, MOVED
    parameters = inspect.signature(ServeControllerClient.get_deployment_info).parameters
    assert list(parameters) == ["self", "name", "app_name"], MOVED


def test_without_serve_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="Serve is not running"):
        fetch_serve_state()


class Client:
    """Serve's client of a controller that knows one running replica each of `known`.

    Of one whose name begins with `zero` it knows a deployment without a replica.

    Attributes:
        asked: How often it was asked for the running replicas.
    """

    def __init__(self, known: list[str], **applications: dict[str, Any]) -> None:
        self.asked = 0
        self._known, self._applications = known, applications
        self._controller = SimpleNamespace(_all_running_replicas=SimpleNamespace(remote=self._all))

    def get_serve_details(self) -> dict[str, Any]:
        return {"applications": self._applications, "http_options": None}

    def get_deployment_info(self, name: str, app_name: str) -> tuple[Any, None]:
        assert name == "Replica"
        if app_name == "gone":
            raise KeyError(app_name)
        config = SimpleNamespace(user_config={"card": {"aliases": [f"{app_name}/alias"]}})
        return SimpleNamespace(deployment_config=config), None

    def _all(self) -> dict[DeploymentID, list[Any]]:
        self.asked += 1
        replica = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
        return {
            DeploymentID("Replica", name): [] if name.startswith("zero") else [replica]
            for name in self._known
        }


def application(status: str, **deployments: Any) -> dict[str, Any]:
    return {"status": status, "message": "", "deployments": deployments}


def states_by(client: Client, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get", lambda value, timeout: value)
    monkeypatch.setattr(controller, "_serve_client", lambda: client)
    return fetch_serve_state().applications


def test_what_answers_while_serve_lists_no_deployment_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve lists none of an application that it builds anew, or whose build failed."""
    client = Client(
        ["failed", "built", "gone", "zero"],
        failed=application("DEPLOY_FAILED"),
        built=application("DEPLOYING"),
        new=application("DEPLOYING"),
        gone=application("DEPLOYING"),
        zero=application("DEPLOYING"),
    )
    found = states_by(client, monkeypatch)
    numbers = {name: state.num_running_replicas for name, state in found.items()}
    assert numbers == {"failed": 1, "built": 1, "new": 0, "gone": 0, "zero": 0}
    for name in ("failed", "built", "zero"):
        assert found[name].card == {"aliases": [f"{name}/alias"]}
    assert found["failed"].replicas == {"r1"}
    assert found["failed"].status == "DEPLOY_FAILED"


def test_where_serve_lists_all_the_replicas_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(
        ["m"], m=application("DEPLOY_FAILED", R={"replicas": []}), n=application("DELETING")
    )
    assert states_by(client, monkeypatch)["m"].num_running_replicas == 0
    assert not client.asked
