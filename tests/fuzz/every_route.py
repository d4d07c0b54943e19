"""Requests for every route of the route table, by every method, at both of its places."""

from __future__ import annotations

import random
from typing import Any

from tests.fuzz.requests import TEXT, Request
from tests.fuzz.values import odd_value
from truthgpt_serve.http.routes import ROUTES

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FIELDS = ("prompt", "messages", "input", "inputs", "query", "documents", "stream", "n", "tools")


def any_route(rng: random.Random, model: str) -> Request:
    """Returns a request with some fields, mostly by a method that the route has."""
    route = rng.choice(ROUTES)
    method = rng.choice(METHODS) if rng.random() < 0.25 else route.methods[0]
    name = rng.choice([model, model, "nosuch", "a" * 3000, "..", "%00", "x.png"])
    path = route.path.replace("{id}", name).replace("{version}", rng.choice(["1", "0", "-1", "%"]))
    if "model" in route.addresses and rng.random() < 0.4:
        path = f"/models/{model}{path}"
    if route.path == "/v1/usage":
        path += rng.choice(["", "?group_by=key,model", "?start=x", "?end=9e99", "?group_by=%00"])
    body: Any = None
    if method not in ("GET", "HEAD"):
        body = {"model": model, "max_tokens": 2, "prompt": TEXT}
        for field in rng.sample(_FIELDS, k=rng.choice([0, 1, 2])):
            body[field] = odd_value(rng)
    return Request(route.path, method, path, body)
