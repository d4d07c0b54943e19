"""The one list of routes: what a path and a method mean where a model does not have them."""

from __future__ import annotations

import pytest

from truthgpt_serve.errors import (
    MethodError,
    ModelNotFoundError,
    RouteNotFoundError,
    UnsupportedError,
)
from truthgpt_serve.http.routes import ROUTES, Route, find_error, find_routes, refuse


def test_no_two_routes_take_the_same_method_at_the_same_path() -> None:
    seen = [(route.path, method) for route in ROUTES for method in route.methods]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_route_is_found_by_its_own_path(route: Route) -> None:
    names = ("some-model", "org/some:model", "a/b/c/d/e") if "/models/" in route.path else ("a-b",)
    for name in names:
        path = route.path.replace("{id}", name).replace("{version}", "1")
        for address in ("service", "model"):
            found = [one.path for one in find_routes(path, address)]
            assert (route.path in found) == (address in route.addresses), (path, address)


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("POST", "/v1/embeddings", UnsupportedError),
        ("GET", "/v1/embeddings", MethodError),
        ("DELETE", "/v1/models/x", MethodError),
        ("DELETE", "/v1/models/org/x", MethodError),
        ("POST", "/v2/models/org/x/infer", ModelNotFoundError),
        ("PUT", "/v2/models/org/x/versions/1/infer", MethodError),
        ("GET", "/v2/models/", RouteNotFoundError),
        ("GET", "/v2/models//infer", RouteNotFoundError),
        ("GET", "/v2/models/" + "a/versions/" * 60_000 + "b", ModelNotFoundError),
        ("POST", "/v2/models/m/infer", UnsupportedError),
        ("POST", "/v2/models/m/versions/1/infer", UnsupportedError),
        ("POST", "/v2/models/x/infer", ModelNotFoundError),
        ("HEAD", "/metrics", UnsupportedError),
        ("POST", "/v1/nonsense", RouteNotFoundError),
        ("POST", "/v1/responses/input_tokens", RouteNotFoundError),
        ("POST", "/v1/responses/compact", RouteNotFoundError),
        ("POST", "/v1/responses/r1", MethodError),
        ("GET", "/v1/responses/r1", UnsupportedError),
        ("POST", "/v1/embeddings/", RouteNotFoundError),
        ("POST", "//v1/embeddings", RouteNotFoundError),
        ("POST", "/v1/EMBEDDINGS", RouteNotFoundError),
        ("GET", "/v1/models/", RouteNotFoundError),
        ("GET", "/ready", RouteNotFoundError),
        ("GET", "/v1/files", RouteNotFoundError),
        ("GET", "", RouteNotFoundError),
        ("GET", "/" * 60_000, RouteNotFoundError),
    ],
)
def test_what_a_model_does_not_have(method: str, path: str, error: type) -> None:
    refusal = refuse(method, path, "m")
    assert type(refusal) is error
    assert len(refusal.message) < 400


def test_a_wrong_method_names_the_right_ones() -> None:
    assert refuse("PUT", "/v1/chat/completions", "m").allow == ("POST",)
    assert refuse("PUT", "/v1/models", "m").allow == ("GET", "HEAD")


def test_the_service_has_pages_that_models_do_not_have() -> None:
    assert find_error("GET", "/docs", "service") is None
    assert type(find_error("GET", "/docs", "model")) is RouteNotFoundError
    assert type(find_error("GET", "/v1/responses/r1", "service")) is RouteNotFoundError
    assert find_error("GET", "/v1/responses/r1", "model") is None
