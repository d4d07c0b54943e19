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
from truthgpt_serve.router.discovery import Catalogue
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


def entry(catalogue: Catalogue, name: str) -> ModelEntry:
    found = catalogue.find(name)
    assert found is not None
    return found


async def no_routes() -> bytes:
    return b""


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
    catalogue = Catalogue(controller.fetch, no_routes)
    await catalogue.start()
    async with asyncio.timeout(5):
        while controller.num_calls < 4:
            await asyncio.sleep(0.01)
    await catalogue.stop()


async def test_an_error_of_the_controller_is_no_error_of_the_request() -> None:
    controller = Controller(failing_call=1)
    catalogue = Catalogue(controller.fetch, no_routes)
    catalogue.update(state(application("m", num_running_replicas=0)))
    catalogue._refreshed_at_s = 0.0
    assert (await catalogue.resolve("m")).name == "m"
    catalogue._refreshed_at_s = 0.0
    with pytest.raises(ModelNotFoundError):
        await catalogue.resolve("nosuch")


async def test_stopping_after_a_failed_call_raises_nothing() -> None:
    catalogue = Catalogue(Controller(failing_call=1).fetch, no_routes)
    with pytest.raises(Exception, match="unavailable"):
        await catalogue.refresh(max_age_s=0)
    await catalogue.stop()


async def test_a_model_that_ran_meanwhile_is_not_refused() -> None:
    starting = application("x", status="DEPLOYING", num_running_replicas=0)
    answers = [state(starting), state(application("x"))]
    catalogue = Catalogue(lambda: answers.pop(0), no_routes)
    await catalogue.refresh(max_age_s=0)
    assert entry(catalogue, "x").error
    assert (await catalogue.resolve("x")).running
    assert not answers


async def test_a_model_that_still_starts_is_refused_by_what_serve_says_now() -> None:
    starting = state(application("x", status="DEPLOYING", num_running_replicas=0))
    calls = []

    def fetch() -> ServeState:
        calls.append(time.monotonic())
        return starting

    catalogue = Catalogue(fetch, no_routes)
    await catalogue.refresh(max_age_s=0)
    refused = await asyncio.gather(
        *(catalogue.resolve("x") for _ in range(50)), return_exceptions=True
    )
    assert {type(error) for error in refused} == {UnavailableError}
    assert len(calls) == 2  # they share the second
    assert calls[1] - calls[0] >= module.MIN_REFRESH_PERIOD_S


def test_an_adapter_gives_way_to_a_model_of_its_name() -> None:
    catalogue = Catalogue(ServeState, no_routes)
    catalogue.update(state(application("a", card={"adapters": ["b", "c"]}), application("b")))
    assert entry(catalogue, "b").application == "b"
    adapter = entry(catalogue, "c")
    assert (adapter.application, adapter.parent) == ("a", "a")


def test_aliases_are_names_of_their_model() -> None:
    catalogue = Catalogue(ServeState, no_routes)
    card = {"aliases": ["org/m:8b", "gpt-4o-mini"], "adapters": ["a"]}
    catalogue.update(state(application("m", card=card)))
    assert [found.name for found in catalogue.entries()] == ["a", "gpt-4o-mini", "m", "org/m:8b"]
    alias = entry(catalogue, "org/m:8b")
    assert (alias.application, alias.alias_of, alias.prefix) == ("m", "m", b"/models/m")
    assert [found.name for found in catalogue.entries() if found.is_model] == ["m"]


def test_a_name_that_two_claim_goes_to_one_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    catalogue = Catalogue(ServeState, no_routes)
    applications = [
        application("b", card={"aliases": ["x", "c", "y"], "adapters": ["l"]}),
        application("c", card={"adapters": ["y"]}),
        application("a", card={"aliases": ["x", "l", "a"]}),
    ]
    for order in (applications, applications[::-1]):
        caplog.clear()
        catalogue.update(state(*order))
        winners = {"x": "a", "c": "c", "y": "c", "l": "b", "a": "a"}
        assert {name: entry(catalogue, name).application for name in winners} == winners
        said = [record.getMessage() for record in caplog.records]
        if order is applications:
            assert len(said) == 4
            assert any("'x': requests go to 'a', not to 'b'" in line for line in said)
        else:
            assert said == []  # once is enough
    catalogue.update(state(applications[0]))
    caplog.clear()
    catalogue.update(state(*applications))
    assert len(caplog.records) == 4
    leaving = replace(applications[2], status="DELETING")
    catalogue.update(state(applications[0], leaving))
    assert entry(catalogue, "x").application == "b"


def test_an_application_that_comes_again_must_run_again() -> None:
    catalogue = Catalogue(ServeState, no_routes)
    asleep = application("m", num_running_replicas=0)
    catalogue.update(state(application("m")))
    catalogue.update(state(asleep))
    assert entry(catalogue, "m").error is None
    catalogue.update(state())
    assert catalogue.entries() == []
    catalogue.update(state(application("m", num_running_replicas=0, status="DEPLOYING")))
    assert "is starting" in (entry(catalogue, "m").error or "")


async def test_a_model_that_is_being_removed_is_gone_but_its_requests_are_finished() -> None:
    there = application("m", card={"adapters": ["a"]})
    leaving = replace(there, status="DELETING", num_running_replicas=0, num_draining_replicas=1)
    current = [state(there)]
    catalogue = Catalogue(lambda: current[0], no_routes)
    catalogue.update(current[0])
    assert (await catalogue.resolve("a")).application == "m"
    current[0] = state(leaving, application("other"))
    catalogue.update(current[0])
    assert [model.name for model in catalogue.entries()] == ["other"]
    assert [app.name for app in catalogue.states()] == ["other"]
    for name in ("m", "a"):
        assert catalogue.find(name) is None
        with pytest.raises(ModelNotFoundError, match="Models that do: other"):
            await catalogue.resolve(name)
        assert catalogue.is_draining(name)
    again = replace(there, status="DEPLOYING", num_running_replicas=0)
    catalogue.update(state(again))
    assert "is starting" in (entry(catalogue, "m").error or "")


@pytest.mark.parametrize("fails", [False, True])
async def test_a_model_that_was_not_reached_is_asked_for_again(fails: bool) -> None:
    removed = replace(application("model"), status="DELETING")

    def fetch() -> ServeState:
        if fails:
            raise ConnectionError("the controller is away")
        return state(removed, application("other"))

    catalogue = Catalogue(fetch, no_routes)
    catalogue.update(state(application("model"), application("other")))
    catalogue._refreshed_at_s -= module.MIN_REFRESH_PERIOD_S
    await catalogue.confirm("other")
    if fails:
        await catalogue.confirm("model")
        return
    with pytest.raises(ModelNotFoundError, match="Models that do: other"):
        await catalogue.confirm("model")
    with pytest.raises(ModelNotFoundError):
        await catalogue.resolve("model")


async def test_a_controller_that_hangs_does_not_hold_such_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONFIRM_TIMEOUT_S", 0.05)
    done = threading.Event()

    def fetch() -> ServeState:
        done.wait(5)
        return state()

    catalogue = Catalogue(fetch, no_routes)
    catalogue.update(state(application("model")))
    catalogue._refreshed_at_s -= module.MIN_REFRESH_PERIOD_S
    try:
        async with asyncio.timeout(2):
            await catalogue.confirm("model")
    finally:
        done.set()
        await catalogue.stop()


def test_what_is_being_removed_gives_its_names_to_others() -> None:
    catalogue = Catalogue(ServeState, no_routes)
    leaving = application("old", status="DELETING", card={"adapters": ["a", "new"]})
    catalogue.update(state(leaving, application("new", card={"adapters": ["a", "old"]})))
    assert [model.name for model in catalogue.entries()] == ["a", "new", "old"]
    assert {model.application for model in catalogue.entries()} == {"new"}


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
    catalogue = Catalogue(Controller(failing_call=1).fetch, no_routes)
    assert catalogue.lost_s is None  # it has never had any
    catalogue.update(state(application("m")))
    await catalogue.confirm("m")
    monkeypatch.setattr(module, "MIN_REFRESH_PERIOD_S", 1e9)  # nobody answers from here on
    age_s = 0.0
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + age_s)
    age_s = module.MAX_AGE_S - 1
    assert catalogue.lost_s is None
    age_s = module.MAX_AGE_S + 1
    lost_s = catalogue.lost_s
    assert lost_s is not None
    assert lost_s > module.MAX_AGE_S
    # Requests go on; one that reached nobody is not held for news that do not come.
    assert (await catalogue.resolve("m")).running
    with pytest.raises(UnavailableError, match="has not answered for 6"):
        await catalogue.confirm("m")
    catalogue.update(state(application("m")))
    assert catalogue.lost_s is None


async def test_a_controller_that_hangs_holds_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 0.05)
    answer, calls = threading.Event(), []

    def fetch() -> ServeState:
        calls.append(1)
        answer.wait(60)
        return state(application("m"))

    catalogue = Catalogue(fetch, no_routes)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            await catalogue.refresh(max_age_s=0)
    assert len(calls) == 1
    answer.set()
    monkeypatch.setattr(module, "FETCH_TIMEOUT_S", 30)
    await catalogue.refresh(max_age_s=0)
    assert catalogue.is_running("m")


async def test_what_waits_for_resources_is_told(caplog: pytest.LogCaptureFixture) -> None:
    waits_for = "1 replica waits for resources: each needs 4 CPU (the cluster has 2, 2 free)"
    waiting = application("m", num_running_replicas=0, status="DEPLOYING", waits_for=waits_for)
    catalogue = Catalogue(lambda: state(waiting), no_routes)
    for _ in range(3):
        catalogue.update(state(waiting))
    assert [record.getMessage() for record in caplog.records] == [f"model 'm': {waits_for}"]
    with pytest.raises(UnavailableError, match="'m' is not placed: 1 replica waits for resources"):
        await catalogue.resolve("m")
