"""A remote model can do what its server's own card says."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.remote_servers import OtherServer, Request, relay_to, serve_at
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.asgi import Send, send_json


@pytest.mark.parametrize(
    ("status", "card", "expected"),
    [
        (
            200,
            {"capabilities": {"json": True, "context_length": 9, "tools": "maybe", "more": [1]}},
            {"json": True, "context_length": 9},
        ),
        (200, {"id": "there"}, None),
        (200, [], None),
        (404, {"error": {"message": "no"}}, None),
    ],
)
def test_the_card(status: int, card: Any, expected: Any) -> None:
    async def behave(request: Request, send: Send) -> None:
        await send_json(send, card, status=status)

    other, port = OtherServer(behave=behave), free_port()
    with serve_at(other, port), relay_to(f"http://127.0.0.1:{port}/v1", model="a/b") as http:
        for _ in range(2):
            assert http.get("/v1/models/far").json().get("capabilities") == expected
    assert [request.path for request in other.requests] == ["/v1/models/a%2Fb"]


def test_a_server_that_is_away_costs_the_card_nothing() -> None:
    with relay_to(f"http://127.0.0.1:{free_port()}/v1", model="there") as http:
        assert "capabilities" not in http.get("/v1/models/far").json()
