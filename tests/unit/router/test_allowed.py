"""Models that a key may not use do not exist for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.router.test_discovery import application, no_routes, state
from truthgpt_serve.access.identity import ANONYMOUS, Identity
from truthgpt_serve.errors import ModelNotFoundError, UnavailableError
from truthgpt_serve.http.asgi import Message
from truthgpt_serve.router.allowed import AllowedModels
from truthgpt_serve.router.backend_info import BackendInfo
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.routes import RouterRoutes


@pytest.fixture
def directory() -> ModelDirectory:
    story = application("story", card={"adapters": ["moral"], "aliases": ["gpt"]})
    starting = application("new", num_running_replicas=0, status="DEPLOYING", last_error="no disk")
    known = state(story, application("echo"), starting)
    directory = ModelDirectory(lambda: known, no_routes)
    directory.update(known)
    return directory


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (None, {"story", "moral", "gpt", "echo", "new"}),
        (("story",), {"story", "moral", "gpt"}),
        (("moral",), {"moral"}),
        (("e*", "n*"), {"echo", "new"}),
        (("none",), set()),
    ],
)
async def test_names(
    directory: ModelDirectory, models: tuple[str, ...] | None, names: set[str]
) -> None:
    allowed = AllowedModels(directory, Identity("k", models))
    assert {entry.name for entry in allowed.entries()} == names
    for name in ("story", "moral", "gpt", "echo", "unknown"):
        found = await allowed.look_up(name)
        assert (found is not None) == (name in names)
        if name in names:
            assert (await allowed.resolve(name)).name == name
        else:
            with pytest.raises(ModelNotFoundError):
                await allowed.resolve(name)


async def test_a_refusal_tells_nothing(directory: ModelDirectory) -> None:
    allowed = AllowedModels(directory, Identity("k", ("story",)))
    messages = []
    for name in ("new", "echo", "unknown"):
        with pytest.raises(ModelNotFoundError) as raised:
            await allowed.resolve(name)
        messages.append(raised.value.message.replace(name, "x"))
    assert len(set(messages)) == 1
    with pytest.raises(UnavailableError):
        await AllowedModels(directory, None).resolve("new")
    with pytest.raises(ModelNotFoundError, match="Models that do: echo"):
        await AllowedModels(directory, None).resolve("unknown")


async def test_routes_of_the_router(directory: ModelDirectory) -> None:
    async def fetch(*arguments: Any) -> Any:
        return 404, b""

    async def ask(path: str, identity: Identity | None) -> Any:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        routes = RouterRoutes(directory, BackendInfo(directory, fetch), fetch, fetch)
        handler = routes.find("GET", path, identity)
        assert handler is not None
        await handler(send)
        return json.loads(sent[1]["body"])

    narrow = Identity("k", ("story",))
    listed = (await ask("/v1/models", narrow))["data"]
    assert [model["id"] for model in listed] == ["gpt", "moral", "story"]
    assert (await ask("/v1/models/moral", narrow))["id"] == "moral"
    for path in ("/v1/models/echo", "/v2/models/echo/ready"):
        with pytest.raises(ModelNotFoundError):
            await ask(path, narrow)
    for identity, shown in ((None, True), (narrow, True), (ANONYMOUS, False)):
        ready = await ask("/ready", identity)
        assert ("last_error" in ready["models"]["new"]) is shown
