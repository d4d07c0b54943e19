"""One page of metrics for several replicas, read by Prometheus' own parser."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_asgi_app
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.support.servers import serve_asgi
from truthgpt_serve.access.identity import SCOPE_KEY, Identity
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.http.asgi import Receive, Scope, Send, send_bytes
from truthgpt_serve.replica.metrics import UP, Address, ReplicaMetrics, label, merge

PATH = "/metrics"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def exporter(value: float) -> Any:
    """Returns the application of a replica that has counted `value` requests."""
    registry = CollectorRegistry()
    Counter("requests", "Requests.", ["route"], registry=registry).labels('a "b" \\c').inc(value)
    Gauge("queued", "Queued requests.", registry=registry).set(value)
    Histogram("wait_seconds", "Waits.", registry=registry, buckets=[1, 2]).observe(value)
    return make_asgi_app(registry)


def samples(text: str) -> Samples:
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    assert len(set(names)) == len(names), "a metric stands in two places"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def others(addresses: dict[str, Address]) -> Any:
    async def find() -> dict[str, Address]:
        return addresses

    return find


def at(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def value(found: Samples, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def test_each_replica_is_on_the_page() -> None:
    with ExitStack() as stack:
        second = ReplicaMetrics(exporter(2), "r2", others({}))
        url = stack.enter_context(serve_asgi(second))
        first = ReplicaMetrics(exporter(1), "r1", others({"r2": at(url)}))
        page = httpx.get(stack.enter_context(serve_asgi(first)) + PATH)
    found = samples(page.text)
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    for number, name in ((1, "r1"), (2, "r2")):
        assert value(found, "queued", replica=name) == number
        assert value(found, "requests_total", route='a "b" \\c', replica=name) == number
        assert value(found, "wait_seconds_sum", replica=name) == number
        assert value(found, "wait_seconds_bucket", le="+Inf", replica=name) == 1
        assert value(found, UP, replica=name) == 1


@pytest.mark.parametrize("path", [PATH, f"{PATH}/"])
def test_an_exporter_that_is_mounted_answers_at_once(path: str) -> None:
    """As vLLM's does: without the slash at the end it would send a scrape there."""
    app = Starlette(routes=[Mount(PATH, exporter(1))])
    with serve_asgi(ReplicaMetrics(app, "r1", others({}))) as url:
        page = httpx.get(url + path)
    assert page.status_code == 200
    assert value(samples(page.text), "queued", replica="r1") == 1


def test_a_replica_that_does_not_answer_is_named() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, b"no", b"text/plain", status=500)

    with ExitStack() as stack:
        url = stack.enter_context(serve_asgi(broken))
        gone = {"dead": ("127.0.0.1", free_port()), "broken": at(url)}
        app = ReplicaMetrics(exporter(1), "r1", others(gone))
        found = samples(httpx.get(stack.enter_context(serve_asgi(app)) + PATH).text)
    assert [value(found, UP, replica=name) for name in ("r1", "dead", "broken")] == [1, 0, 0]
    assert value(found, "queued", replica="r1") == 1


@pytest.mark.parametrize("error", [RuntimeError("no controller"), TimeoutError()])
def test_without_the_controller_a_replica_answers_for_itself(error: Exception) -> None:
    async def fail() -> dict[str, Address]:
        raise error

    with serve_asgi(ReplicaMetrics(exporter(3), "r1", fail)) as url:
        found = samples(httpx.get(url + PATH).text)
    assert value(found, "queued", replica="r1") == 3


@pytest.mark.parametrize(("status", "answer"), [(400, 200), (404, 200), (503, 503)])
def test_an_application_without_metrics_still_has_replicas(status: int, answer: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_bytes(send, b"none here", b"text/plain", status=status)

    with serve_asgi(ReplicaMetrics(app, "r1", others({}))) as url:
        page = httpx.get(url + PATH)
    assert page.status_code == answer
    if answer == 200:
        assert value(samples(page.text), UP, replica="r1") == 1
    else:
        assert page.text == "none here"


def test_the_format_is_the_one_that_can_be_merged() -> None:
    """Prometheus asks for OpenMetrics, which ends with a line that may stand only once."""
    headers = {"accept": "application/openmetrics-text; version=1.0.0", "accept-encoding": "gzip"}
    with serve_asgi(ReplicaMetrics(exporter(1), "r1", others({}))) as url:
        page = httpx.get(url + PATH, headers=headers)
    assert "# EOF" not in page.text
    assert "content-encoding" not in page.headers


@pytest.mark.parametrize(
    ("line", "labeled"),
    [
        ("up 1", 'up{replica="r"} 1'),
        ("up{} 1", 'up{replica="r"} 1'),
        ('a{b="}"} 1 1700000000', 'a{b="}",replica="r"} 1 1700000000'),
        ('a{b="x",} NaN', 'a{b="x",replica="r"} NaN'),
        ("# TYPE up gauge", "# TYPE up gauge"),
        ("# a remark", "# a remark"),
    ],
)
def test_lines(line: str, labeled: str) -> None:
    assert label(line, "r") == f"{labeled}\n"


def test_a_name_is_escaped() -> None:
    assert samples(label("up 1", 'a"\\\n'))["up", frozenset({("replica", 'a"\\\n')})] == 1


def test_no_page_at_all() -> None:
    assert value(samples(merge({"r1": None})), UP, replica="r1") == 0


KEYS = r"""# HELP truthgpt_key_tokens_total Tokens.
# TYPE truthgpt_key_tokens_total counter
truthgpt_key_tokens_total{key="team",kind="prompt",model="m"} 1
truthgpt_key_tokens_total{key="team-b",kind="prompt",model="m"} 2
truthgpt_key_tokens_total{key="other",kind="prompt",model="key=\"team\",m"} 3
waiting 4
"""


@pytest.mark.parametrize(
    ("identity", "seen"),
    [
        (Identity("team"), [1.0]),
        (Identity("nobody"), []),
        (Identity("team", admin=True), [1.0, 2.0, 3.0]),
        (Identity("", is_internal=True), [1.0, 2.0, 3.0]),
        (None, [1.0, 2.0, 3.0]),
    ],
)
def test_a_key_reads_what_it_used_itself(identity: Identity | None, seen: list[float]) -> None:
    metrics = ReplicaMetrics(exporter(1), "r1", others({}), [lambda: KEYS])

    async def known(scope: Any, receive: Any, send: Any) -> None:
        await metrics({**scope, SCOPE_KEY: identity}, receive, send)

    with serve_asgi(known) as url:
        pages = [httpx.get(f"{url}{PATH}{query}").text for query in ("", "?replica=own")]
    for page in pages:
        found = samples(page)
        values = [number for (name, _), number in found.items() if name.startswith("truthgpt_key_")]
        assert sorted(values) == seen
        assert 4.0 in [number for (name, _), number in found.items() if name == "waiting"]
