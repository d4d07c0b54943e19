"""Which models the router believes in, while applications and the controller misbehave."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from truthgpt_serve.cluster.state import ApplicationState, ServeState, parse_details
from truthgpt_serve.errors import ModelNotFoundError, UnavailableError
from truthgpt_serve.router import discovery as module
from truthgpt_serve.router.discovery import ModelDirectory
from truthgpt_serve.router.model_entry import ModelEntry


def application(name: str, **changes: Any) -> ApplicationState:
    values: dict[str, Any] = {
        "name": name,
        "route_prefix": f"/models/{name}",
        "status": "RUNNING",
        "message": "",
        "num_running_replicas": 1,
        "card": {},
        "deployed_at_s": 1.0,
    }
    return ApplicationState(**{**values, **changes})


def state(*applications: ApplicationState) -> ServeState:
    return ServeState({app.name: app for app in applications})


def entry(directory: ModelDirectory, name: str) -> ModelEntry:
    found = directory.find(name)
    assert found is not None
    return found


async def no_routes() -> bytes:
    return b""


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUTES_PERIOD_S", "STATE_PERIOD_S", "UNSETTLED_PERIOD_S"):
        monkeypatch.setattr(module, name, 0.01)


class Controller:
    """Fails in one call with an error of Ray's, which is neither RuntimeError nor OSError."""

    def __init__(self, failing_call: int) -> None:
        self.num_calls = 0
        self._failing_call = failing_call

    def fetch(self) -> ServeState:
        self.num_calls += 1
        if self.num_calls == self._failing_call:
            raise Exception("the actor is unavailable")  # as `ray.exceptions.RayError` is
        return state(application("m"))


@pytest.mark.usefixtures("fast")
async def test_following_goes_on_after_any_error() -> None:
    controller = Controller(failing_call=2)
    directory = ModelDirectory(controller.fetch, no_routes)
    await directory.start()
    async with asyncio.timeout(5):
        while controller.num_calls < 4:
            await asyncio.sleep(0.01)
    await directory.stop()


async def test_an_error_of_the_controller_is_no_error_of_the_request() -> None:
    controller = Controller(failing_call=1)
    clock = Clock()
    directory = ModelDirectory(controller.fetch, no_routes, clock)
    directory.update(state(application("m", num_running_replicas=0)))
    clock.now_s += module.MIN_REFRESH_PERIOD_S
    assert (await directory.resolve("m")).name == "m"
    clock.now_s += module.MIN_REFRESH_PERIOD_S
    with pytest.raises(ModelNotFoundError):
        await directory.resolve("nosuch")


async def test_stopping_after_a_failed_call_raises_nothing() -> None:
    directory = ModelDirectory(Controller(failing_call=1).fetch, no_routes)
    with pytest.raises(Exception, match="unavailable"):
        await directory.refresh(max_age_s=0)
    await directory.stop()


async def test_a_model_that_ran_meanwhile_is_not_refused() -> None:
    starting = application("x", status="DEPLOYING", num_running_replicas=0)
    answers = [state(starting), state(application("x"))]
    directory = ModelDirectory(lambda: answers.pop(0), no_routes)
    await directory.refresh(max_age_s=0)
    assert entry(directory, "x").error
    assert (await directory.resolve("x")).running
    assert not answers


async def test_a_model_that_still_starts_is_refused_by_what_serve_says_now() -> None:
    starting = state(application("x", status="DEPLOYING", num_running_replicas=0))
    calls = []

    def fetch() -> ServeState:
        calls.append(time.monotonic())
        return starting

    directory = ModelDirectory(fetch, no_routes)
    await directory.refresh(max_age_s=0)
    refused = await asyncio.gather(
        *(directory.resolve("x") for _ in range(50)), return_exceptions=True
    )
    assert {type(error) for error in refused} == {UnavailableError}
    assert len(calls) == 2  # they share the second
    assert calls[1] - calls[0] >= module.MIN_REFRESH_PERIOD_S


async def test_a_model_that_was_deployed_just_now_is_known() -> None:
    """Another router has told clients of it, while this one has news of a moment before."""
    answers = [state(application("x")), state(application("x"), application("y"))]
    routes = [b"x"]

    async def fetch_routes() -> bytes:
        return routes[0]

    directory = ModelDirectory(lambda: answers.pop(0), fetch_routes)
    await directory.start()
    async with asyncio.timeout(5):
        while not directory.loaded:
            await asyncio.sleep(0.01)
    routes[0] = b"x and y"
    found = await asyncio.gather(*(directory.resolve("y") for _ in range(5)))
    assert [entry.name for entry in found] == ["y"] * 5
    await directory.stop()


@pytest.mark.usefixtures("fast")
async def test_a_model_is_known_whose_news_are_on_their_way() -> None:
    answers, goes_on = [state(application("x")), state(application("y"))], threading.Event()
    routes = [b"x"]

    def fetch() -> ServeState:
        if len(answers) == 1:
            goes_on.wait(5)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def fetch_routes() -> bytes:
        return routes[0]

    directory = ModelDirectory(fetch, fetch_routes)
    await directory.start()
    async with asyncio.timeout(5):
        while not directory.loaded:
            await asyncio.sleep(0.001)
        routes[0] = b"y"
        await asyncio.sleep(0.1)  # who follows the applications asks the controller now
        asked = asyncio.create_task(directory.resolve("y"))
        await asyncio.sleep(0.1)
        assert not asked.done()
        goes_on.set()
        assert (await asked).name == "y"
    await directory.stop()


async def test_a_proxy_that_hangs_does_not_hold_requests_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONFIRM_TIMEOUT_S", 0.05)

    async def hang() -> bytes:
        await asyncio.sleep(60)
        return b""

    directory = ModelDirectory(lambda: state(application("x")), hang)
    async with asyncio.timeout(5):
        with pytest.raises(ModelNotFoundError):
            await directory.resolve("y")


async def test_names_that_nothing_has_ask_the_proxy_now_and_then_and_no_controller() -> None:
    num_asked = [0, 0]

    def fetch() -> ServeState:
        num_asked[0] += 1
        return state(application("x"))

    async def fetch_routes() -> bytes:
        num_asked[1] += 1
        return b""

    clock = Clock()
    directory = ModelDirectory(fetch, fetch_routes, clock)
    await directory.refresh(max_age_s=0)
    for _ in range(2):
        for _ in range(50):
            with pytest.raises(ModelNotFoundError):
                await directory.resolve("y")
        clock.now_s += module.MIN_LOOK_PERIOD_S
    assert num_asked == [1, 2]


def test_an_adapter_gives_way_to_a_model_of_its_name() -> None:
    directory = ModelDirectory(ServeState, no_routes)
    directory.update(state(application("a", card={"adapters": ["b", "c"]}), application("b")))
    assert entry(directory, "b").application == "b"
    adapter = entry(directory, "c")
    assert (adapter.application, adapter.parent) == ("a", "a")


def test_aliases_are_names_of_their_model() -> None:
    directory = ModelDirectory(ServeState, no_routes)
    card = {"aliases": ["org/m:8b", "gpt-4o-mini"], "adapters": ["a"]}
    directory.update(state(application("m", card=card)))
    assert [found.name for found in directory.entries()] == ["a", "gpt-4o-mini", "m", "org/m:8b"]
    alias = entry(directory, "org/m:8b")
    assert (alias.application, alias.alias_of, alias.prefix) == ("m", "m", b"/models/m")
    assert [found.name for found in directory.entries() if found.is_model] == ["m"]


def test_a_name_that_two_claim_goes_to_one_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    directory = ModelDirectory(ServeState, no_routes)
    applications = [
        application("b", card={"aliases": ["x", "c", "y"], "adapters": ["l"]}),
        application("c", card={"adapters": ["y"]}),
        application("a", card={"aliases": ["x", "l", "a"]}),
    ]
    for order in (applications, applications[::-1]):
        caplog.clear()
        directory.update(state(*order))
        winners = {"x": "a", "c": "c", "y": "c", "l": "b", "a": "a"}
        assert {name: entry(directory, name).application for name in winners} == winners
        said = [record.getMessage() for record in caplog.records]
        if order is applications:
            assert len(said) == 4
            assert any("'x': requests go to 'a', not to 'b'" in line for line in said)
        else:
            assert said == []  # once is enough
    directory.update(state(applications[0]))
    caplog.clear()
    directory.update(state(*applications))
    assert len(caplog.records) == 4
    leaving = replace(applications[2], status="DELETING")
    directory.update(state(applications[0], leaving))
    assert entry(directory, "x").application == "b"


def test_an_application_that_comes_again_must_run_again() -> None:
    directory = ModelDirectory(ServeState, no_routes)
    asleep = application("m", num_running_replicas=0)
    directory.update(state(application("m")))
    directory.update(state(asleep))
    assert entry(directory, "m").error is None
    directory.update(state())
    assert directory.entries() == []
    directory.update(state(application("m", num_running_replicas=0, status="DEPLOYING")))
    assert "is starting" in (entry(directory, "m").error or "")


async def test_a_model_that_is_being_removed_is_gone_but_its_requests_are_finished() -> None:
    there = application("m", card={"adapters": ["a"]})
    leaving = replace(there, status="DELETING", num_running_replicas=0, num_draining_replicas=1)
    current = [state(there)]
    directory = ModelDirectory(lambda: current[0], no_routes)
    directory.update(current[0])
    assert (await directory.resolve("a")).application == "m"
    current[0] = state(leaving, application("other"))
    directory.update(current[0])
    assert [model.name for model in directory.entries()] == ["other"]
    assert [app.name for app in directory.states()] == ["other"]
    for name in ("m", "a"):
        assert directory.find(name) is None
        with pytest.raises(ModelNotFoundError, match="Models that do: other"):
            await directory.resolve(name)
        assert directory.is_draining(name)
    again = replace(there, status="DEPLOYING", num_running_replicas=0)
    directory.update(state(again))
    assert "is starting" in (entry(directory, "m").error or "")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_model_that_was_not_reached_is_asked_for_again(fails: bool) -> None:
    removed = replace(application("model"), status="DELETING")

    def fetch() -> ServeState:
        if fails:
            raise ConnectionError("the controller is away")
        return state(removed, application("other"))

    clock = Clock()
    directory = ModelDirectory(fetch, no_routes, clock)
    directory.update(state(application("model"), application("other")))
    clock.now_s += module.MIN_REFRESH_PERIOD_S
    await directory.confirm("other")
    if fails:
        await directory.confirm("model")
        return
    with pytest.raises(ModelNotFoundError, match="Models that do: other"):
        await directory.confirm("model")
    with pytest.raises(ModelNotFoundError):
        await directory.resolve("model")


async def test_a_controller_that_hangs_does_not_hold_such_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONFIRM_TIMEOUT_S", 0.05)
    done = threading.Event()

    def fetch() -> ServeState:
        done.wait(5)
        return state()

    clock = Clock()
    directory = ModelDirectory(fetch, no_routes, clock)
    directory.update(state(application("model")))
    clock.now_s += module.MIN_REFRESH_PERIOD_S
    try:
        async with asyncio.timeout(2):
            await directory.confirm("model")
    finally:
        done.set()
        await directory.stop()


def test_what_is_being_removed_gives_its_names_to_others() -> None:
    directory = ModelDirectory(ServeState, no_routes)
    leaving = application("old", status="DELETING", card={"adapters": ["a", "new"]})
    directory.update(state(leaving, application("new", card={"adapters": ["a", "old"]})))
    assert [model.name for model in directory.entries()] == ["a", "new", "old"]
    assert {model.application for model in directory.entries()} == {"new"}


def details(card: Any, *states: str) -> dict[str, Any]:
    deployment = {
        "deployment_config": {"user_config": {"card": card}},
        "replicas": [{"state": state} for state in states],
    }
    app = {"status": "RUNNING", "route_prefix": "/models/m", "deployments": {"d": deployment}}
    return {"applications": {"m": app}, "http_options": {"port": 8000}}


def test_replicas_are_counted_by_what_they_do() -> None:
    states = ("RUNNING", "PENDING_MIGRATION", "STOPPING", "STARTING")
    app = parse_details(details({}, *states)).applications["m"]
    assert (app.num_running_replicas, app.num_draining_replicas) == (2, 1)


def test_another_applications_card_is_no_card() -> None:
    assert parse_details(details("a text")).applications["m"].card is None


async def test_state_that_is_too_old_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    directory = ModelDirectory(Controller(failing_call=1).fetch, no_routes, clock)
    assert directory.lost_s is None  # it has never had any
    directory.update(state(application("m")))
    await directory.confirm("m")
    monkeypatch.setattr(module, "MIN_REFRESH_PERIOD_S", 1e9)  # nothing answers from here on
    clock.now_s += module.MAX_AGE_S
    assert directory.lost_s is None
    clock.now_s += 1
    assert directory.lost_s == module.MAX_AGE_S + 1
    # Requests go on; one that reached no model is not held for news that do not come.
    assert (await directory.resolve("m")).running
    with pytest.raises(UnavailableError, match="has not answered for 6"):
        await directory.confirm("m")
    directory.update(state(application("m")))
    assert directory.lost_s is None


async def test_a_controller_that_hangs_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.05)
    answer, calls = threading.Event(), []

    def fetch() -> ServeState:
        calls.append(1)
        answer.wait(60)
        return state(application("m"))

    directory = ModelDirectory(fetch, no_routes)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await directory.refresh(max_age_s=0)
    assert len(calls) == 1
    answer.set()
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 30)
    await directory.refresh(max_age_s=0)
    assert directory.is_running("m")


async def test_what_waits_for_resources_is_told(caplog: pytest.LogCaptureFixture) -> None:
    waits_for = "1 replica waits for resources: each needs 4 CPU (the cluster has 2, 2 free)"
    waiting = application("m", num_running_replicas=0, status="DEPLOYING", waits_for=waits_for)
    directory = ModelDirectory(lambda: state(waiting), no_routes)
    for _ in range(3):
        directory.update(state(waiting))
    assert [record.getMessage() for record in caplog.records] == [f"model 'm': {waits_for}"]
    with pytest.raises(UnavailableError, match="'m' is not placed: 1 replica waits for resources"):
        await directory.resolve("m")
