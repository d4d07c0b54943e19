"""The Serve deployment class of the playground."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.controller import fetch_serve_state, worker_proxy_port
from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.cluster.start_errors import to_cause
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.playground.first_request import OnFirstRequest
from truthgpt_serve.telemetry.log_lines import mend_lines

NICENESS = 10
"""Added to that of Serve's replicas: where the machine is busy the models come first."""
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_MCP_SERVER": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What Gradio reads at import: it sends nothing to other machines, and asks none."""


class Playground:
    """The replica of the playground; there is one, which keeps what open pages have.

    Args:
        config: Its configuration as a nested dict.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        os.nice(NICENESS)
        mend_lines()
        self._config = PlaygroundConfig.model_validate(config)
        self._files: Path | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        """Returns an application that builds the pages for their first visitor."""
        require_gradio()
        self._pages = OnFirstRequest(self._create)
        return self._pages

    async def _create(self) -> Any:
        """Builds the pages in a thread, so that health checks are answered meanwhile."""
        address = self._config.base_url
        if address is None:
            address = await asyncio.to_thread(_find_service)
        from truthgpt_serve.playground.client import ServiceClient
        from truthgpt_serve.playground.running import Running

        self._client = ServiceClient(address, timeout_s=self._config.request_timeout_s)
        self._running = Running()
        return await asyncio.to_thread(self._build)

    def _build(self) -> Any:
        self._files = Path(tempfile.mkdtemp(prefix="truthgpt-playground-"))
        os.environ |= {**ENVIRONMENT, "GRADIO_TEMP_DIR": str(self._files)}
        from truthgpt_serve.playground.build import create_app

        return create_app(self._config, self._client, self._running, self._files)

    async def __del__(self) -> None:
        """Ends running requests and removes recordings; Serve awaits this at the end."""
        if hasattr(self, "_client"):
            self._running.stop_all()
            await self._client.close()
        if self._files is not None:
            shutil.rmtree(self._files, ignore_errors=True)


def require_gradio() -> None:
    """Raises ConfigError where Gradio is missing.

    Not for the builder: it may run on a node that only manages the cluster.
    """
    if importlib.util.find_spec("gradio") is None:
        fix = "pip install 'truthgpt-serve[ui]', or remove the application from the Serve file"
        error = ConfigError(
            [Fault("ui", "the playground needs Gradio, which is not installed", fix)]
        )
        raise error from to_cause(error)


def _find_service() -> str:
    """Returns the address of this node's proxy."""
    state = fetch_serve_state()
    host = f"[{state.proxy_host}]" if ":" in state.proxy_host else state.proxy_host
    return f"http://{host}:{worker_proxy_port() or state.proxy_port or DEFAULT_PORT}"
