"""How the last process died, as the model's card says it."""

from __future__ import annotations

import json
from typing import Any

from truthgpt_serve.http.asgi import send_json
from truthgpt_serve.server.faults.card import CardWithDeath


async def test_the_card_says_how_the_last_process_died() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].endswith("/v1/models/x"):
            await send_json(send, {"id": "x"})
        elif scope["path"].endswith("/v1/models/list"):
            await send_json(send, [1])
        else:
            await send_json(send, {"error": {}}, status=404)

    async def get(path: str) -> tuple[int, Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        await CardWithDeath(app, "died: SIGSEGV")(scope, None, send)  # type: ignore[arg-type]
        return sent[0]["status"], json.loads(sent[1]["body"])

    assert await get("/models/x/v1/models/x") == (200, {"id": "x", "last_error": "died: SIGSEGV"})
    assert await get("/models/x/v1/models/list") == (200, [1])
    assert await get("/models/x/v1/models/y") == (404, {"error": {}})
    assert (await get("/health"))[0] == 404
