"""Who answers a visitor of the playground, by a real HAProxy."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.playground import START_PATH


def ask(proxy: Proxy, method: str, path: str) -> str:
    """Returns who answers."""
    with proxy.over_port() as client:
        return str(client.request(method, path).json()["by"])


def test_without_a_replica_the_router_has_the_page_and_all_else_is_held(tmp_path: Path) -> None:
    with running(tmp_path, num_playgrounds=0) as proxy:
        for path in ("/ui", "/ui/", "/ui/?__theme=dark"):
            assert ask(proxy, "GET", path) == "router"
            assert proxy.router.paths[-1].partition("?")[0] == START_PATH
        assert httpx.head(f"{proxy.url}/ui/", timeout=LIMIT_S).status_code == 200
        assert proxy.router.paths[-1] == START_PATH
        for method, path in (
            ("POST", "/ui/"),
            ("GET", "/ui/config"),
            ("POST", "/ui/gradio_api/queue/join"),
        ):
            assert ask(proxy, method, path) == "fallback"
            assert proxy.fallback.paths[-1] == path


@pytest.mark.long("waits for limits of time")
def test_a_replica_has_the_page_until_it_is_lost(tmp_path: Path) -> None:
    with running(tmp_path, num_playgrounds=1) as proxy:
        assert ask(proxy, "GET", "/ui/") == "ui"
        assert proxy.playgrounds[0].paths[-1] == "/ui/"
        proxy.playgrounds[0].refuse()
        deadline = time.monotonic() + LIMIT_S
        while ask(proxy, "GET", "/ui/") != "router":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert proxy.router.paths[-1] == START_PATH
        assert ask(proxy, "POST", "/ui/gradio_api/queue/join") == "fallback"


def test_a_service_without_it_has_no_such_page(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        assert ask(proxy, "GET", "/ui/") == "router"
        assert proxy.router.paths[-1] == "/ui/"


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with running(tmp_path, num_playgrounds=0) as proxy:
        adapted = (tmp_path / "haproxy.adapted.cfg").read_text()
        assert ask(proxy, "GET", "/ui/config") == "fallback"
    section = adapted.partition("backend http-ui\n")[2].partition("\nbackend ")[0]
    assert "timeout server 180s" in section.splitlines()[0]
