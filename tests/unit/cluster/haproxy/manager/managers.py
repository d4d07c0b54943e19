"""Ray Serve's own class around HAProxy as the service has it, for the tests of this folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from tests.support.haproxy_process import LIMIT_S
from truthgpt_serve.cluster.haproxy.manager.restarts import restart_at_once
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.processes import read_process


class Restarting(HAProxyApi):
    """Ray's class as the service has it, and its own stays as it is."""


restart_at_once(Restarting)


def create_manager(folder: Path, port: int) -> Any:
    """Returns Ray's object, as a manager whose files are there has it."""
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder / "state"),
        server_state_file=str(folder / "state" / "servers"),
        metrics_socket_path=str(folder / "metrics.sock"),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    return Restarting(config, config_file_path=str(folder / "haproxy.cfg"))


@asynccontextmanager
async def running(folder: Path, port: int = 0) -> AsyncIterator[Any]:
    """Yields Ray's object whose HAProxy runs."""
    api = create_manager(folder, port or free_port())
    await api.start()
    try:
        yield api
    finally:
        await api.stop()


def new_backend() -> BackendConfig:
    server = ServerConfig(name="one", host="127.0.0.1", port=free_port())
    return BackendConfig(
        name="http-new", path_prefix="/models/new", app_name="new", servers=[server]
    )


async def is_answered(api: Any) -> bool:
    url = f"http://127.0.0.1:{api.cfg.frontend_port}/-/healthz"
    async with httpx.AsyncClient(timeout=5) as client:
        try:
            await client.get(url)
        except httpx.TransportError:
            return False
        return True


async def wait_for_other(api: Any, pid: int) -> int:
    """Returns the process that serves in the place of this one."""
    deadline = time.monotonic() + LIMIT_S
    while api._proc.pid == pid or not await is_answered(api):
        assert time.monotonic() < deadline, f"process {pid} was not replaced"
        await asyncio.sleep(0.05)
    return int(api._proc.pid)


async def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while read_process(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} lives"
        await asyncio.sleep(0.05)
