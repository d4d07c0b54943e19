"""A Ray cluster of its own on this machine, with its own ports, for benchmarks and tests.

Starts Ray by `ray start`, and deploys by what `serve deploy` sends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from truthgpt_serve.cluster.environment_file import read_environment_file
from truthgpt_serve.cluster.haproxy.program import BINARY_VARIABLE, program_path
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.private_files import (
    LOOPBACK_ONLY,
    TOKEN_FILE,
    make_private_folder,
    private_environment,
    write_token,
)
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run
from truthgpt_serve.validate.applications import MODEL_IMPORT, ROUTER_IMPORT

START_TIMEOUT_S = 300.0
RAY = (sys.executable, "-P", "-m", "truthgpt_serve.cluster.service.ray_limits")
"""Ray's command line, with longer limits for its start."""
STOP_TIMEOUT_S = 30.0
SLOW_PROXIES = "roxies not available after"
"""What `serve deploy` says after a minute in which the proxies did not start."""
NUM_READY_ANSWERS = 4
"""Times in a row that the router must say it is ready: each replica of it learns by itself."""


@dataclass(frozen=True, slots=True)
class Host:
    """Where a node runs: this machine, or a network namespace on it.

    Attributes:
        address: Its own address, under which the others reach it.
        prefix: Words in front of each command that shall run there.
        labels: Ray's labels of the node.
        num_cpus: Logical cores that Ray may hand out there.
        num_gpus: Logical GPUs that Ray may hand out there, real or not; None counts the real ones.
    """

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    num_cpus: int = 8
    num_gpus: int | None = None

    @property
    def is_alone(self) -> bool:
        """Whether nothing outside this machine's loopback reaches it."""
        return self.address == "127.0.0.1"

    def ray_arguments(self) -> list[str]:
        """Returns the arguments of `ray start` that every node takes."""
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        return [
            *("--num-cpus", str(self.num_cpus)),
            *([] if self.num_gpus is None else ["--num-gpus", str(self.num_gpus)]),
            *("--object-store-memory", str(200 * 1024 * 1024)),
            *([] if self.is_alone else ["--node-ip-address", self.address]),
            *(["--labels", labels] if labels else []),
        ]


class LocalCluster:
    """One head node; use it as a context manager, which ends every process it started.

    Args:
        ray_env: `configs/ray.env`, or None for Ray's defaults (its Python proxy).
        env: Variables on top.
        host: Where the head node runs.
    """

    def __init__(
        self,
        ray_env: Path | None,
        *,
        env: Mapping[str, str] | None = None,
        host: Host | None = None,
    ) -> None:
        self.run_id = create_run_id()
        self.port = free_port()
        self.dashboard_port = free_port()
        self.metrics_port = free_port()
        self.host = host or Host()
        self.ray_port = free_port()
        self.folder = make_private_folder()
        token_file = write_token(self.folder)
        self._deployed: list[str] = []
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            **(read_environment_file(ray_env) if ray_env is not None else {}),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            BINARY_VARIABLE: str(program_path()),
            **private_environment(self.folder, token_file),
            **(LOOPBACK_ONLY if self.host.is_alone else {}),
            # Where requests go while a model has no replica: shared, it would be another service.
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            **(env or {}),
            **create_run_environment(self.run_id),
        }

    @property
    def url(self) -> str:
        """The service's address."""
        return f"http://{self.host.address}:{self.port}"

    @property
    def dashboard_url(self) -> str:
        """Where `serve deploy -a` and `serve status -a` look."""
        return f"http://{self.host.address}:{self.dashboard_port}"

    @property
    def _applications_url(self) -> str:
        return f"{self.dashboard_url}/api/serve/applications/"

    @property
    def _listen_address(self) -> str:
        return "127.0.0.1" if self.host.is_alone else "0.0.0.0"  # each node has its own

    def __enter__(self) -> Self:
        """Starts Ray."""
        try:
            self._run(
                *self.host.prefix, *RAY, "start", "--head", "--port", str(self.ray_port),
                "--temp-dir", str(self.folder / "ray"), "--dashboard-host", self.host.address,
                "--dashboard-port", str(self.dashboard_port),
                "--dashboard-agent-listen-port", str(free_port()),
                "--metrics-export-port", str(self.metrics_port), *self.host.ray_arguments(),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Ends everything."""
        self.close()

    def close(self) -> None:
        """Ends every process of the cluster and removes its folder."""
        end_run(self.run_id, timeout_s=STOP_TIMEOUT_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def deploy(
        self, applications: list[dict[str, Any]], *, by_command: bool = False, **top: Any
    ) -> None:
        """Makes these the cluster's applications; returns before they are running.

        Args:
            applications: The entries of the Serve file.
            by_command: Run `serve deploy`, which sends the same, and takes 1.5 s of a core.
            top: The Serve file's other keys.
        """
        config = {
            "proxy_location": "EveryNode",
            "http_options": {"host": self._listen_address, "port": self.port},
            "logging_config": {"enable_access_log": False},
            "applications": [self._with_auth(application) for application in applications],
            **top,
        }
        self._deployed = [application["name"] for application in applications]
        send = self._deploy_by_command if by_command else self._put
        try:
            send(config)
        except RuntimeError as error:
            if SLOW_PROXIES not in str(error):
                raise
            send(config)  # the proxies go on starting meanwhile

    def _deploy_by_command(self, config: Mapping[str, Any]) -> None:
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self._run(*self.host.prefix, "serve", "deploy", "-a", self.dashboard_url, str(path))

    def _put(self, config: Mapping[str, Any]) -> None:
        headers = {**token_headers(self.folder), "content-type": "application/json"}
        body = json.dumps(config).encode()
        request = urllib.request.Request(self._applications_url, body, headers, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=START_TIMEOUT_S):
                pass
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise RuntimeError(f"PUT {self._applications_url}: {error}\n{text}") from error

    def _with_auth(self, application: dict[str, Any]) -> dict[str, Any]:
        """Lets a cluster of several nodes ask for no keys, where the application does not say."""
        ours = application["import_path"] in (MODEL_IMPORT, ROUTER_IMPORT)
        if self.host.is_alone or not ours or "auth" in application["args"]:
            return application
        return {**application, "args": {**application["args"], "auth": "none"}}

    def details(self) -> dict[str, Any]:
        """Returns Serve's own account of the cluster."""
        request = urllib.request.Request(self._applications_url, headers=token_headers(self.folder))
        with urllib.request.urlopen(request, timeout=30) as answer:
            value: dict[str, Any] = json.load(answer)
        return value

    def statuses(self) -> dict[str, str]:
        """Returns the status of each application."""
        return {
            name: value["status"] for name, value in self.details().get("applications", {}).items()
        }

    def wait_until_ready(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Waits until all that was deployed last is RUNNING and the router says so too.

        Raises:
            TimeoutError: It is not after `timeout_s`; the message holds Serve's own account.
        """
        deadline = time.monotonic() + timeout_s
        statuses: dict[str, str] = {}
        while time.monotonic() < deadline:
            statuses = self.statuses()
            # Others than these are on their way out.
            deployed = {statuses.get(name) for name in self._deployed}
            if deployed == {"RUNNING"} and all(self._is_ready() for _ in range(NUM_READY_ANSWERS)):
                return
            if "DEPLOY_FAILED" in deployed:
                break
            time.sleep(0.2)
        messages = {
            name: value.get("message") for name, value in self.details()["applications"].items()
        }
        raise TimeoutError(f"not ready after {timeout_s:g} s: {statuses} {messages}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def replica_pids(self, application: str) -> list[int]:
        """Returns the process ids of an application's running replicas."""
        deployments = self.details()["applications"][application]["deployments"].values()
        return [
            replica["pid"]
            for deployment in deployments
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        ]


def token_headers(folder: Path) -> dict[str, str]:
    """Returns the HTTP headers with which Ray's dashboard lets a client in."""
    return {"Authorization": f"Bearer {(folder / TOKEN_FILE).read_text()}"}


def model_application(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the Serve file's entry of a model with these configuration keys."""
    return {
        "name": name,
        "route_prefix": f"/models/{name}",
        "import_path": MODEL_IMPORT,
        "args": dict(config),
    }


def router_application(port: int, **config: Any) -> dict[str, Any]:
    """Returns the Serve file's entry of the router, for a proxy on this port."""
    return {
        "name": "router",
        "route_prefix": "/",
        "import_path": ROUTER_IMPORT,
        "args": {"proxy_port": port, **config},
    }
