"""HAProxy is replaced as Ray replaces it, and no request of clients or routers is lost."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy import program as haproxy
from truthgpt_serve.cluster.haproxy.affinity import Affinity, affinity_news
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES

NUM_RELOADS = 3


def replace(proxy: Proxy, old: int) -> subprocess.Popen[bytes]:
    """Starts the successor, which takes the listening sockets over."""
    command = [str(haproxy.program_path()), "-db", "-f", str(proxy.folder / "haproxy.cfg")]
    sockets = ["-sf", str(old), "-x", str(proxy.folder / "admin.sock")]
    return subprocess.Popen([*command, *sockets], stderr=subprocess.DEVNULL)


def load(client: Callable[[], httpx.Client], path: str, stop: threading.Event) -> list[str]:
    """Sends requests, half of them on new connections; returns what failed."""
    failed = []
    with client() as kept:
        while not stop.is_set():
            try:
                answers = [kept.post(path, content=b"{}")]
                with client() as fresh:
                    answers.append(fresh.post(path, content=b"{}"))
            except httpx.HTTPError as error:
                failed.append(repr(error))
            else:
                failed += [answer.text for answer in answers if answer.status_code != 200]
            stop.wait(0.01)
    return failed


@pytest.mark.long("sends requests for seconds")
@pytest.mark.parametrize("way", ["clients", "routers"])
def test_nothing_is_lost_while_haproxy_is_replaced(tmp_path: Path, way: str) -> None:
    with running(tmp_path) as proxy, ThreadPoolExecutor(4) as clients:
        client = proxy.over_socket if way == "routers" else proxy.over_port
        stop = threading.Event()
        runs = [clients.submit(load, client, "/models/m/x", stop) for _ in range(4)]
        old, successors = proxy.pid, []
        try:
            for _ in range(NUM_RELOADS):
                time.sleep(0.5)
                successors.append(replace(proxy, old))
                old = successors[-1].pid
                wait_for(proxy, old)
            time.sleep(0.5)
        finally:
            stop.set()
            failed = [failure for run in runs for failure in run.result(LIMIT_S)]
            for successor in successors:
                successor.kill()
                successor.wait(LIMIT_S)
        assert not failed


def test_what_routers_said_of_conversations_stays(tmp_path: Path) -> None:
    with running(tmp_path, num_replicas=4) as proxy:
        affinity = affinity_news({"m": Affinity("prefix", 8)})
        with proxy.over_socket() as router:
            router.get(f"{NEWS_PATH}?{news_query(0, {}, affinity)}")
        conversations = [str(number) for number in range(12)]
        first = [ask(proxy, name) for name in conversations]
        assert len(set(first)) > 1
        old, successors = proxy.pid, []
        try:
            for _ in range(2):
                successors.append(replace(proxy, old))
                old = successors[-1].pid
                wait_for(proxy, old)
                assert [ask(proxy, name) for name in conversations] == first
        finally:
            for successor in successors:
                successor.kill()
                successor.wait(LIMIT_S)


def test_requests_go_straight_to_models_while_the_only_router_is_away(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        with proxy.over_socket() as router:
            router.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, {'m': 1})}")
        proxy.router.refuse()
        old, successors = proxy.pid, []
        try:
            for _ in range(2):
                successors.append(replace(proxy, old))
                old = successors[-1].pid
                wait_for(proxy, old)
                for model, by in (("m", "model"), ("an-adapter", "fallback")):
                    with proxy.over_port() as client:
                        answer = client.post("/v1/completions", json={"model": model})
                    assert answer.json() == {"by": by}
        finally:
            for successor in successors:
                successor.kill()
                successor.wait(LIMIT_S)


def ask(proxy: Proxy, conversation: str) -> str:
    """Sends a request of a conversation and returns which replica answers it."""
    body, headers = {"model": "m"}, {"x-session-id": conversation}
    url = f"{proxy.url}/models/m/v1/completions"
    return str(httpx.post(url, json=body, headers=headers, timeout=LIMIT_S).json()["by"])


def wait_for(proxy: Proxy, pid: int) -> None:
    """Waits until a process has taken the sockets over."""
    deadline = time.monotonic() + LIMIT_S
    while f"{pid}" not in who_answers(proxy):
        assert time.monotonic() < deadline, "the successor does not take over"
        time.sleep(0.05)


def who_answers(proxy: Proxy) -> str:
    """Returns what the admin socket says of its process."""
    try:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(LIMIT_S)
            admin.connect(str(proxy.folder / "admin.sock"))
            admin.sendall(b"show info\n")
            said = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
    except OSError:
        return ""
    return next((line for line in said.splitlines() if line.startswith("Pid:")), "")
