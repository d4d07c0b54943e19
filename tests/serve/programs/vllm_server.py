"""Serves one vLLM model with uvicorn, without Ray: `vllm_server.py PORT NAME CONFIG_JSON`.

`GET /check` calls the class's `check_health`. The application answers under `/models/NAME` too, as
Ray Serve calls it. The header `x-key` names the key of a request, as the gate would find it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

import uvicorn

from deployments.vllm.deployment import VllmModel
from truthgpt_serve.config import load_model_config
from truthgpt_serve.usage.counted import Usage, counting


async def main() -> None:
    port, name, config = sys.argv[1:]
    model = VllmModel()
    model.set_name(name)
    await model.load(load_model_config(json.loads(config)).to_cfg())
    try:
        app = await model.create_asgi_app()
        server = uvicorn.Server(
            uvicorn.Config(
                Mounted(app, model, f"/models/{name}"),
                host="127.0.0.1",
                port=int(port),
                access_log=False,
                timeout_graceful_shutdown=2,
            )
        )
        await server.serve()
    finally:
        await model.close()


class Mounted:
    """Sets `root_path` as Ray Serve does: the path keeps its prefix."""

    def __init__(self, app: Any, model: VllmModel, prefix: str) -> None:
        self._app = app
        self._model = model
        self._prefix = prefix

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/check":
            return await self._check(send)
        if scope["type"] == "http" and scope["path"].startswith(f"{self._prefix}/"):
            scope = {**scope, "root_path": self._prefix}
        key = dict(scope.get("headers", ())).get(b"x-key")
        with contextlib.nullcontext() if key is None else counting(Usage(key=key.decode())):
            await self._app(scope, receive, send)

    async def _check(self, send: Any) -> None:
        status, text = 200, "alive"
        try:
            self._model.check_health()
        except Exception as error:
            status, text = 500, f"{type(error).__name__}: {error}"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": text.encode()})


if __name__ == "__main__":
    asyncio.run(main())
