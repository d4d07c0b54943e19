"""Applies a Serve file to the service that runs, as `serve deploy` does, and waits for a model."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import yaml

from truthgpt_serve.cli._service.address import find_local
from truthgpt_serve.cluster.private_files import TOKEN_FILE, TOKEN_PATH_VARIABLE

ADDRESS_VARIABLE = "RAY_DASHBOARD_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PATH = "/api/serve/applications/"
REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 600.0
POLL_S = 1.0
_VERSION = "TRUTHGPT_MODEL_FILE_VERSION"
"""Ray builds an application again only if its entry changes: this changes with the model's file."""


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
        """Returns what runs. Raises click.ClickException."""
        found: dict[str, Any] = json.loads(self._send("GET", None))
        return found

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


def check_same(service: Service, serve: Path, adding: str) -> None:
    """Checks that a service runs what a Serve file says, before the file is changed.

    Args:
        service: The service.
        serve: The file.
        adding: The application that may be added.

    Raises:
        click.ClickException: It does not answer, or has applications that the file has not.
    """
    found = _others(service.read(), yaml.safe_load(serve.read_text(encoding="utf-8")))
    if others := [name for name in found if name != adding]:
        raise click.ClickException(
            f"the service runs another Serve file: it has {', '.join(others)}, which {serve} has "
            "not (name the file that it runs with --serve-file)"
        )


def deploy(
    service: Service, serve: Path, application: str, changed: Path, say: Callable[[str], None]
) -> None:
    """Applies a Serve file, and waits until one application of it runs.

    Args:
        service: What takes it.
        serve: The file.
        application: Name of the application that is waited for.
        changed: The file that has the new entry: the Serve file or a model's.
        say: Prints a line.

    Raises:
        click.ClickException: The service refuses, or the model does not start.
    """
    config = yaml.safe_load(serve.read_text(encoding="utf-8"))
    if changed != serve:
        _mark(config, application, changed)
    service.apply(config)
    say(f"applied {serve}; waiting for {application}")
    _wait(service, application, say)


def _others(running: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    names = {application["name"] for application in config["applications"]}
    return sorted(set(running.get("applications") or {}) - names)


def _mark(config: Mapping[str, Any], application: str, changed: Path) -> None:
    version = hashlib.sha256(changed.read_bytes()).hexdigest()[:12]
    for entry in config["applications"]:
        if entry["name"] == application:
            given = entry.get("runtime_env") or {}
            variables = {**(given.get("env_vars") or {}), _VERSION: version}
            entry["runtime_env"] = {**given, "env_vars": variables}


def _wait(service: Service, application: str, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        try:
            found = (service.read().get("applications") or {}).get(application) or {}
        except click.ClickException:  # busy for a moment: what is applied stays so
            continue
        status = found.get("status")
        if status == "RUNNING":
            say(f"{application} runs")
            return
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            said = " ".join(str(found.get("message")).split())[:500]
            raise click.ClickException(
                f"{application} does not start ({said}); `truthgpt why {application}` says more"
            )
    say(f"{application} is still starting: `truthgpt why {application}` says what it waits for")
