"""What a running HAProxy knows, read at its admin socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.haproxy_process import running
from truthgpt_serve.cluster.haproxy import replaced
from truthgpt_serve.cluster.haproxy.affinity import Affinity, affinity_news, affinity_variables
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.replaced import read_variables


def test_variables_are_read_in_several_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced, "MAX_AT_ONCE", 1)
    with running(tmp_path, num_replicas=2) as proxy:
        names = affinity_variables((tmp_path / "haproxy.cfg").read_text().splitlines())
        assert read_variables(tmp_path / "admin.sock", names) == {}
        affinity = affinity_news({"m": Affinity("session", 3)})
        with proxy.over_socket() as router:
            router.get(f"{NEWS_PATH}?{news_query(0, {}, affinity)}")
        found = read_variables(tmp_path / "admin.sock", [*names, "proc.other"])
    assert sorted(found.values()) == ["3", "session"]


def test_without_a_process_nothing_is_known(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        read_variables(tmp_path / "admin.sock", ["proc.a"])


def test_a_process_that_hangs_holds_its_successor_for_a_short_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaced, "TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "admin.sock"))
        silent.listen()
        with pytest.raises(TimeoutError):
            read_variables(tmp_path / "admin.sock", ["proc.a"])
