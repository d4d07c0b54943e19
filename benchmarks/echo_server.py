"""Serves the echo family by uvicorn alone, on the port given: the product is compared with it."""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from truthgpt_serve.config import load_model_config
from truthgpt_serve.registry import MODEL_REGISTRY
from truthgpt_serve.server import ModelInstance, create_asgi_app


async def main(port: int) -> None:
    """Serves until the process is ended."""
    keys = {
        "model": {"family": "echo"},
        "serving": {"max_ongoing_requests": 256, "engine": {"token_interval_s": 0.005}},
    }
    config = load_model_config(keys)
    host = ModelInstance(MODEL_REGISTRY.find("echo"), config, name="echo")
    await host.start()
    app = await create_asgi_app(host)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")
    )
    try:
        await server.serve()
    finally:
        await host.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
