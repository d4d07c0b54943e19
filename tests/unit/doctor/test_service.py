"""The probes of the service: HAProxy, ports, the Hub and its cache."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.doctor.service import (
    cache_folder,
    probe_disk,
    probe_haproxy,
    probe_hub,
    probe_port,
    probe_ray_settings,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_haproxy_is_started_by_the_services_own_program() -> None:
    found = probe_haproxy()
    assert found.works, found.detail
    assert "HAProxy version" in found.detail


@contextmanager
def listening(status: int, body: bytes) -> Iterator[int]:
    """A program on a port of its own that answers everything the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


def test_a_port_is_free_or_taken_by_this_service_or_by_another() -> None:
    assert probe_port(free_port()).detail == "free"
    with listening(200, b'{"status": "ok"}') as port:
        assert probe_port(port).works
    for body in (b"[]", b"hello"):
        with listening(200, body) as port:
            found = probe_port(port)
        assert not found.works
        assert "http_options.port" in found.fix


def test_the_hub_is_asked_unless_it_is_switched_off() -> None:
    switched_off = probe_hub({"HF_HUB_OFFLINE": "1"})
    assert (switched_off.works, "switched off" in switched_off.detail) == (False, True)
    for status in (200, 403):
        with listening(status, b"") as port:
            found = probe_hub({"HF_ENDPOINT": f"http://127.0.0.1:{port}"})
        assert found.works
        assert f"({status})" in found.detail
    absent = probe_hub({"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    assert not absent.works
    assert "HF_ENDPOINT" in absent.fix


def test_the_cache_is_where_the_hub_keeps_it(tmp_path: Path) -> None:
    assert cache_folder({"HF_HUB_CACHE": "/a"}) == Path("/a")
    assert cache_folder({"HF_HOME": "/a"}) == Path("/a/hub")
    assert cache_folder({"XDG_CACHE_HOME": "/a"}) == Path("/a/huggingface/hub")
    found = probe_disk({"HF_HOME": str(tmp_path / "not" / "yet")})
    assert f"free at {tmp_path}/not/yet/hub" in found.detail


def test_rays_settings_are_those_of_this_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no" in probe_ray_settings({}).detail
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ray.env").write_text("A=1\nB=2\n")
    missing = probe_ray_settings({"A": "1"})
    assert (missing.works, missing.detail.split()[:3]) == (False, ["1", "of", "2"])
    assert probe_ray_settings({"A": "1", "B": "2"}).works
    own = probe_ray_settings({"A": "1", "B": "3"})
    assert own.works
    assert "B=3" in own.detail
