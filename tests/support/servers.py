"""Real HTTP servers for tests: any ASGI application under uvicorn, in a thread, on a free port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn


@contextmanager
def serve_asgi(app: Any, *, lifespan: Literal["on", "off"] = "off") -> Iterator[str]:
    """Serves `app` while the block runs; yields its address."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan=lifespan, log_level="error")
    config.timeout_graceful_shutdown = 2
    # Longer than a router keeps a connection, as the proxies are: at uvicorn's own 5 s a busy
    # machine has it close one just as the next request comes.
    config.timeout_keep_alive = 60
    server = uvicorn.Server(config)
    started = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(server.serve())
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        started.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(60)  # a model that loads on a busy machine
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = lifespan == "off"  # else the application could not shut down
        thread.join(10)
        assert not thread.is_alive()
