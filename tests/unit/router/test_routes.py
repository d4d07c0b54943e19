"""`/ready` and `/v1/models` say what is not ready and why, also when there are no news any more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.router.test_discovery import Clock, application, no_routes, state
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.backend_info import BackendInfo
from truthgpt_serve.router.discovery import MAX_AGE_S, ModelDirectory
from truthgpt_serve.router.routes import RouterRoutes

WAITS_FOR = "1 replica waits for resources: each needs 4 CPU (the cluster has 2, 2 free)"


async def get(directory: ModelDirectory, path: str) -> tuple[int, dict[bytes, bytes], Any]:
    async def fetch(*arguments: Any, **options: Any) -> Any:
        raise AssertionError

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    page = RouterRoutes(directory, BackendInfo(directory, fetch), fetch, fetch).find("GET", path)
    assert page is not None
    await page(send)
    headers = dict(sent[0]["headers"])
    return sent[0]["status"], headers, json.loads(sent[1]["body"] or b"null")


async def test_a_state_that_is_too_old_is_not_ready() -> None:
    clock = Clock()
    directory = ModelDirectory(lambda: state(application("m")), no_routes, clock)
    directory.update(state(application("m")))
    assert (await get(directory, "/ready"))[0] == 200
    clock.now_s += MAX_AGE_S - 5
    assert (await get(directory, "/ready"))[0] == 200  # as long as a controller may take to return
    clock.now_s += 10
    status, headers, answer = await get(directory, "/ready")
    assert status == 503
    assert headers[b"retry-after"]
    assert answer["status"] == "not ready"
    assert answer["message"].startswith("Ray Serve's controller has not answered for 6")
    directory.update(state(application("m")))
    assert (await get(directory, "/ready"))[0] == 200


@pytest.mark.parametrize(
    ("replicas", "status_of_it", "target"),
    [
        (1, "RUNNING", b"/ui/"),
        (1, "UNHEALTHY", b"/ui/"),
        (0, "RUNNING", b"/ui/"),  # it starts for its first visitor
        (0, "DEPLOYING", b"/docs"),
        (None, "", b"/docs"),
    ],
)
async def test_the_root_leads_to_the_playground_where_it_runs(
    replicas: int | None, status_of_it: str, target: bytes
) -> None:
    ui = application(
        "ui",
        route_prefix="/ui",
        num_running_replicas=replicas or 0,
        card=None,
        status=status_of_it,
    )
    applications = [application("m"), *([] if replicas is None else [ui])]
    directory = ModelDirectory(lambda: state(*applications), no_routes)
    status, headers, _ = await get(directory, "/")
    assert (status, headers[b"location"]) == (307, target)
    assert [one.name for one in directory.states()] == ["m"]  # not a model
    assert [one.name for one in directory.entries()] == ["m"]
    assert (await get(directory, "/ready"))[0] == 200


async def test_what_waits_is_shown() -> None:
    waiting = application("m", num_running_replicas=0, status="DEPLOYING", waits_for=WAITS_FOR)
    directory = ModelDirectory(lambda: state(waiting), no_routes)
    directory.update(state(waiting, application("other")))
    status, _, answer = await get(directory, "/ready")
    assert status == 503
    assert answer["models"]["m"]["message"] == WAITS_FOR
    assert "message" not in answer["models"]["other"]
    _, _, listed = await get(directory, "/v1/models")
    shown = {model["id"]: model.get("waits_for") for model in listed["data"]}
    assert shown == {"m": WAITS_FOR, "other": None}
