"""Every family of the whole service times every route, on both ways to it."""

from __future__ import annotations

import pytest

from tests import route_table
from tests.serve.whole_service.conftest import Service

ENGINE_TEXT = (
    *route_table.TEXT,
    "/v1/chat/completions/batch",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
ENGINE_VECTORS = ("/v1/embeddings", "/pooling", "/tokenize", "/detokenize")
OWN = {
    "tiny": ENGINE_TEXT,
    "embedder": ENGINE_VECTORS,
    "echo": route_table.TEXT,
    "shouting": route_table.TEXT,
    "spelling": route_table.TEXT,
}
PAST = ("/v1/responses/{id}/cancel", "/v1/score", "/score", "/v1/rerank", "/rerank")
"""What an engine has, and answers by what the request names or by its weights."""


@pytest.mark.parametrize("way", ["router", "own"])
@pytest.mark.parametrize("name", OWN)
def test_every_route(service: Service, name: str, way: str) -> None:
    prefix = "" if way == "router" else f"/models/{name}"
    past = [path.replace("{id}", name) for path in PAST] if OWN[name] != route_table.TEXT else []
    for case in route_table.cases(name, OWN[name], router=way == "router"):
        if case.path not in past:
            route_table.check(service.http, name, case, prefix)
