"""Many models behind one HAProxy: each has its own requests and its own queue, at the same cost."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.haproxy_configuration import ray_configuration
from tests.support.haproxy_process import LIMIT_S, Proxy, Replica, running
from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, ROUTERS, section
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.program import adapt
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
OTHERS = ("/models/n", "/models/n/own", "/models/n.2", "/models/mm", "/tool")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("p"), others=OTHERS) as proxy:
        yield proxy


def body(model: str) -> bytes:
    return json.dumps({"model": model}).encode()


def tell(proxy: Proxy, **held: int) -> None:
    with proxy.over_socket() as client:
        client.get(f"{NEWS_PATH}?{news_query(MAX_BODY_BYTES, held)}").raise_for_status()


@pytest.mark.parametrize(
    ("path", "by"),
    [
        ("/models/n", "/models/n"),
        ("/models/n/", "/models/n"),
        ("/models/n/v1/models", "/models/n"),
        ("/models/n?x=/models/m", "/models/n"),
        ("/models/n.2/x", "/models/n.2"),
        ("/models/mm/x", "/models/mm"),
        ("/models/m/x", "model"),
        ("/models/n/own", "/models/n/own"),
        ("/models/n/own/x", "/models/n/own"),
        ("/models/n/owner", "/models/n"),
        ("/models/nn/x", "router"),
        ("/models//n/x", "router"),
        ("/models/", "router"),
        ("/models/%6e/x", "router"),
        ("/tool/x", "/tool"),
        ("/v1/models", "router"),
    ],
)
@pytest.mark.parametrize("way", ["clients", "routers"])
def test_each_application_has_its_paths(proxy: Proxy, way: str, path: str, by: str) -> None:
    with proxy.over_port() if way == "clients" else proxy.over_socket() as client:
        assert client.get(path).json() == {"by": by}


def test_health_checks_are_answered(proxy: Proxy) -> None:
    for connect in (proxy.over_port, proxy.over_socket):
        with connect() as client:
            assert client.get("/-/healthz").text == "success"


@contextlib.contextmanager
def busy(proxy: Proxy, name: str, replica: Replica) -> Iterator[None]:
    """Has a model work on one request."""
    replica.released.clear()
    before = len(replica.paths)
    with ThreadPoolExecutor(1) as clients:
        url = f"{proxy.url}/models/{name}{CHAT}?/wait"
        held = clients.submit(httpx.post, url, content=b"{}", headers=JSON, timeout=LIMIT_S)
        try:
            deadline = time.monotonic() + LIMIT_S
            while len(replica.paths) == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield
        finally:
            replica.released.set()
        assert held.result(LIMIT_S).status_code == 200
    time.sleep(0.1)  # HAProxy counts a request for a moment longer than its client sees it


def test_a_model_that_is_full_refuses_its_own_requests_alone(proxy: Proxy) -> None:
    replicas = {"m": proxy.model, "mm": proxy.others["/models/mm"]}
    tell(proxy, m=1, mm=1)
    for full, free in (("m", "mm"), ("mm", "m")):
        with busy(proxy, full, replicas[full]), proxy.over_port() as client:
            for path in (CHAT, f"/models/{full}{CHAT}"):
                refused = client.post(
                    path, content=b'{"model": "%s"}' % full.encode(), headers=JSON
                )
                assert refused.status_code == 429
                assert f"The queue of model '{full}' is full: 1 request" in refused.text
            for path in (CHAT, f"/models/{free}{CHAT}"):
                answer = client.post(path, content=body(free), headers=JSON)
                assert answer.json() == {"by": replicas[free].name}


def test_a_model_of_which_routers_say_nothing_any_more_is_theirs(proxy: Proxy) -> None:
    with proxy.over_port() as client:
        for held, by in (
            ({"mm": 2}, "/models/mm"),
            ({"m": 1}, "router"),
            ({"mm": 1}, "/models/mm"),
        ):
            tell(proxy, **held)
            assert client.post(CHAT, content=body("mm"), headers=JSON).json() == {"by": by}
        tell(proxy, m=1)
        with busy(proxy, "mm", proxy.others["/models/mm"]):
            answer = client.post(f"/models/mm{CHAT}", content=body("mm"), headers=JSON)
            assert answer.status_code == 200


def test_a_model_has_its_queue_where_another_application_is_below_it(proxy: Proxy) -> None:
    tell(proxy, n=0)
    with proxy.over_port() as client:
        for path in (CHAT, f"/models/n{CHAT}"):
            assert client.post(path, content=body("n"), headers=JSON).status_code == 429
        own = client.post("/models/n/own/x", content=body("n"), headers=JSON)
    assert own.json() == {"by": "/models/n/own"}


def test_clients_tell_no_news(proxy: Proxy) -> None:
    tell(proxy, m=5)
    with proxy.over_port() as client:
        routes = client.get(f"{NEWS_PATH}?{news_query(0, {})}").json()
        answer = client.post(CHAT, content=body("m"), headers=JSON)
    assert routes["/models/n"] == "n"
    assert answer.json() == {"by": "model"}


def test_the_rules_that_a_request_meets_are_as_many_with_many_models(tmp_path: Path) -> None:
    num_rules = []
    for number in (2, 60):
        folder = tmp_path / str(number)
        folder.mkdir()
        applications: dict[str, int] = {f"/models/n{at}": 9000 + at for at in range(number)}
        text = ray_configuration(folder, 8000, {**applications, "/": 8001}).read_text()
        lines = adapt(text, folder).splitlines()
        bodies = [
            lines[slice(*section(lines, one))] for one in (CLIENTS, ROUTERS, "backend http-n1")
        ]
        rules = re.compile(r"^\s*(http-(request|response|after-response)|use_backend) ")
        num_rules.append([sum(bool(rules.match(line)) for line in body) for body in bodies])
    assert num_rules[0] == num_rules[1]
    assert min(num_rules[0]) > 1
