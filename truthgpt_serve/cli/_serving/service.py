"""Ray's dashboard of the service that runs: what it says, and where Serve files go to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from truthgpt_serve.cli._service.address import find_local
from truthgpt_serve.cluster.private_files import TOKEN_FILE, TOKEN_PATH_VARIABLE

ADDRESS_VARIABLE = "RAY_DASHBOARD_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PATH = "/api/serve/applications/"
REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0


class Service:
    """Ray's dashboard, which takes Serve files.

    Args:
        address: The dashboard's.
        token: What its port asks for, or None.
    """

    def __init__(self, address: str, token: str | None) -> None:
        self.address = address.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    def read(self) -> dict[str, Any]:
        """Returns what Ray says of the service. Raises click.ClickException."""
        found: dict[str, Any] = json.loads(self._send("GET", None))
        return found

    def applications(self) -> dict[str, Any]:
        """Returns what it says of each application that runs. Raises click.ClickException."""
        return self.read().get("applications") or {}

    def apply(self, config: Mapping[str, Any]) -> None:
        """Has the service be as a Serve file says. Raises click.ClickException."""
        self._send("PUT", config)

    def _send(self, method: str, content: Any) -> str:
        import httpx

        timeout = httpx.Timeout(REQUEST_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            with httpx.Client(headers=self._headers, timeout=timeout, trust_env=False) as client:
                answer = client.request(method, f"{self.address}{PATH}", json=content)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise click.ClickException(
                f"the service's dashboard at {self.address} does not answer ({reason})"
            ) from error
        if answer.status_code != 200:
            said = " ".join(answer.text.split())[:500]
            raise click.ClickException(
                f"the service's dashboard at {self.address} refused: {answer.status_code} {said}"
            )
        return answer.text


def find_service(environ: Mapping[str, str] = os.environ) -> Service | None:
    """Returns the service that runs here, or that `RAY_DASHBOARD_ADDRESS` names, or None.

    Raises:
        click.ClickException: Its token cannot be read.
    """
    local = find_local()
    given = environ.get(ADDRESS_VARIABLE, "").strip()
    if local is None and not given:
        return None
    token = environ.get("RAY_AUTH_TOKEN")
    file = environ.get(TOKEN_PATH_VARIABLE)
    is_here = not given or _is_loopback(given)
    if not token and not file and is_here and local is not None and local.run_folder is not None:
        file = str(local.run_folder / TOKEN_FILE)
    if not token and file:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise click.ClickException(f"{file} cannot be read: {error.strerror}") from error
    return Service(given or DEFAULT_ADDRESS, token)


def _is_loopback(address: str) -> bool:
    """Returns whether an address is of this machine: its service's token goes nowhere else."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
