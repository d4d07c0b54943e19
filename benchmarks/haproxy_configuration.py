"""The configuration of HAProxy as the installed Ray Serve writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions


def ray_configuration(
    folder: Path,
    port: int,
    applications: Mapping[str, int | Sequence[int]],
    *,
    fallback: int | None = None,
) -> Path:
    """Writes the file and returns its path.

    Args:
        folder: Where it is written.
        port: Where HAProxy listens.
        applications: By route prefix, the port of the one replica, or those of several or none.
        fallback: Port of Ray's fallback proxy, or None for none.
    """
    backends = {}
    for prefix, given in applications.items():
        name = prefix.rpartition("/")[2] or "router"
        ports = [given] if isinstance(given, int) else given
        replicas = {
            f"{name}-replica{f'-{port}' if at else ''}": port for at, port in enumerate(ports)
        }
        backends[f"http-{name}"] = BackendConfig(
            name=f"http-{name}",
            path_prefix=prefix,
            app_name=name,
            servers=[
                ServerConfig(name=replica, host="127.0.0.1", port=port)
                for replica, port in replicas.items()
            ],
            fallback_server=None
            if fallback is None
            else ServerConfig(name="fallback", host="127.0.0.1", port=fallback),
        )

    async def write() -> None:
        config = HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "server-state"),
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            is_head=True,
        )
        path = str(folder / "haproxy.cfg")
        api = HAProxyApi(config, config_file_path=path)
        api.set_backend_configs(backends)
        api._generate_config_file_internal()

    asyncio.run(write())
    return folder / "haproxy.cfg"
