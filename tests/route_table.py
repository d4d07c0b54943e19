"""Every family times every route: what each answers, by one rule; knows no model.

A path that exists nowhere is 404, another method than a route's 405, and what this model cannot do
400 with the code `unsupported`; each in the form of the path's API.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx

from truthgpt_serve.http.routes import ROUTES, Route

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
NOWHERE = ("/v1/nosuch", "/v1/chat", "/v1/files", "/v1/embeddings/x", "/v2/nosuch", "/v3", "/x")
SPECIAL = ("/v1/models/{id}", "/v1/files/images/{id}", "/v1/responses/{id}", "/metrics")
"""Routes whose answer is about something else than the model: a name, a file, an optional page."""
TEXT = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
IMAGES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")
SPEECH = ("/v1/audio/transcriptions", "/v1/audio/translations")
TENSORS = tuple(route.path for route in ROUTES if route.path.startswith("/v2"))
ALL = ("/v1/models", "/v1/infer", "/health")


class Case(NamedTuple):
    """A request and what it must come to."""

    method: str
    path: str
    expected: str
    allow: tuple[str, ...] = ()


def cases(name: str, own: tuple[str, ...], *, router: bool) -> Iterator[Case]:
    """Yields the requests for one model.

    Args:
        name: The model name.
        own: The routes that it has, beside those that all have.
        router: Whether they go through the router, which needs a body to find the model.
    """
    for path in NOWHERE:
        for method in METHODS:
            yield Case(method, path, "nowhere")
    for route in ROUTES:
        if "model" not in route.addresses or route.path in SPECIAL:
            continue
        if router and route.path in ("/v2", "/health", "/v1/models"):
            continue  # the router's own
        if router and "service" not in route.addresses:
            continue
        if router and ("health" in route.path or route.path.endswith("/ready")):
            continue
        yield from _of_route(route, name, has=route.path in (*own, *ALL))


def _of_route(route: Route, name: str, *, has: bool) -> Iterator[Case]:
    path = route.path.replace("{id}", name).replace("{version}", "1")
    others = [route for route in ROUTES if route.path == path and "model" in route.addresses]
    allow = tuple(dict.fromkeys(verb for one in (route, *others) for verb in one.allow))
    for method in METHODS:
        if method not in allow:
            yield Case(method, path, "method", allow)
        elif method in route.methods:
            yield Case(method, path, "has" if has else "unsupported")


def check(client: httpx.Client, name: str, case: Case, prefix: str = "") -> None:
    """Sends a request and asserts what it comes to."""
    body = {"model": name}
    answer = client.request(
        case.method, prefix + case.path, json=None if case.method == "GET" else body
    )
    place = f"{name}: {case} -> {answer.status_code} {answer.text[:300]}"
    assert answer.status_code < 500, place
    if answer.status_code >= 400:
        check_form(answer, case.path, place)
    code = _code(answer)
    if case.expected == "has":
        assert answer.status_code not in (404, 405), place
        assert code not in ("unsupported", "not_found"), place
    elif case.expected == "unsupported":
        assert (answer.status_code, code) in ((400, "unsupported"), (400, None)), place
        assert "cannot" in answer.text or "has task" in answer.text or "not" in answer.text, place
    elif case.expected == "method":
        assert answer.status_code == 405, place
        allowed = set(answer.headers["allow"].replace(" ", "").split(","))
        assert allowed | {"HEAD"} == {*case.allow, "HEAD"}, place  # vLLM has no HEAD
    else:
        assert answer.status_code == 404, place


def check_form(answer: httpx.Response, path: str, place: str = "") -> None:
    """Asserts that an error has the form of its path's API."""
    assert answer.headers["content-type"] == "application/json", place
    value = answer.json()
    if path == "/v2" or path.startswith("/v2/"):
        assert value.keys() == {"error"}, place
        assert isinstance(value["error"], str), place
        return
    error = value["error"]
    assert isinstance(error["message"], str), place
    assert error["message"], place
    if path.startswith("/v1/messages"):
        assert value["type"] == "error", place
        assert error["type"].endswith(("_error", "_too_large")), place
        return
    assert {"message", "type", "param", "code"} <= set(error), place
    for key in ("param", "code"):
        assert isinstance(error[key], str | None), place
    assert error["type"].islower(), place
    assert " " not in error["type"], place


def _code(answer: httpx.Response) -> Any:
    if answer.status_code < 400:
        return None
    error = answer.json()["error"]
    return error.get("code") if isinstance(error, dict) else None
