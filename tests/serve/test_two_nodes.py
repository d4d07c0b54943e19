"""Two nodes: where models are placed, both addresses, and what the loss of a node costs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.local_cluster import Host, LocalCluster, model_application, router_application
from tests.serve.intrusion import INTRUDER
from tests.serve.listeners import find_listeners
from tests.serve.two_nodes import Network, WorkerNode, can_make_networks, nodes_of
from truthgpt_serve.replica.metrics import UP

RAY_ENV = Path(__file__).resolve().parents[2] / "configs" / "ray.env"
HEAD, WORKER = 1, 2
MODELS = ["both", "half", "here", "there", "third"]
NUM_STREAMS = 50
NUM_TOKENS = 60
BEGIN_S = 10.0
"""Less than a stream lasts."""
TOKEN_INTERVAL_S = 0.2
RECOVERY_S = 5.0
"""New requests succeed again after so long."""
SILENCE_S = 11.0
"""How long HAProxy waits for a sign of life: see truthgpt_serve/cluster/haproxy/program.py."""
PLACED_S = 150.0

pytestmark = [
    pytest.mark.alone("bounds how soon requests succeed after the loss of a node"),
    pytest.mark.skipif(
        not can_make_networks(),
        reason="needs root and Debian's iproute2 to make network namespaces",
    ),
]


@dataclass(frozen=True)
class Nodes:
    """The cluster with its two nodes."""

    network: Network
    cluster: LocalCluster
    worker: WorkerNode


def echo(**hardware: Any) -> dict[str, Any]:
    return {
        "model": {"family": "echo"},
        "hardware": {"gpus": 0, "cpus": 0.1, **hardware},
        "serving": {
            "num_replicas": 1 if hardware else 2,
            "max_replicas_per_node": 1,
            "max_ongoing_requests": 128,
            "engine": {"token_interval_s": TOKEN_INTERVAL_S},
        },
    }


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ExitStack() as stack:
        network = stack.enter_context(Network(77))
        head, second = (
            Host(network.address(host), network.prefix(host), {"place": place}, 4, num_gpus)
            for host, place, num_gpus in ((HEAD, "head", 0), (WORKER, "worker", 1))
        )
        cluster = stack.enter_context(LocalCluster(RAY_ENV, host=head))
        worker = WorkerNode(cluster, second)
        stack.callback(worker.close)
        worker.start()
        cluster.deploy(
            [
                model_application("both", echo()),
                model_application("here", echo(label_selector={"place": "head"})),
                model_application("there", echo(label_selector={"place": "worker"})),
                model_application("third", echo(gpus=0.33)),
                model_application("half", echo(gpus=0.5)),
                router_application(cluster.port, hold_timeout_s=2, max_replicas_per_node=1),
            ]
        )
        cluster.wait_until_ready(timeout_s=PLACED_S)
        found = Nodes(network, cluster, worker)
        wait_until(lambda: is_complete(found), "both nodes carry their share")
        yield found


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PLACED_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not after {timeout_s:g} s: {what}"
        time.sleep(0.2)


def is_complete(nodes: Nodes) -> bool:
    """Whether every replica is where it belongs and both nodes' proxies know all of them."""
    addresses = {nodes.network.address(host) for host in (HEAD, WORKER)}
    if any(set(nodes_of(nodes.cluster, name).values()) != addresses for name in ("both", "router")):
        return False
    return all(
        answers(url, model) for url in (nodes.cluster.url, nodes.worker.url) for model in MODELS
    )


def answers(url: str, model: str) -> bool:
    body = {"model": model, "prompt": "a", "max_tokens": 1}
    try:
        return httpx.post(f"{url}/v1/completions", json=body, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Stream:
    """What one client saw of its stream."""

    words: list[str] = field(default_factory=list)
    error: str = ""
    is_whole: bool = False
    ended_s: float = 0.0


async def read_stream(client: httpx.AsyncClient, word: str, found: Stream) -> None:
    """Fills `found` while it reads."""
    body = {
        "model": "both",
        "prompt": word,
        "max_tokens": NUM_TOKENS,
        "stream": True,
    }
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                _read_event(line.removeprefix("data: "), found)
    except httpx.RemoteProtocolError:  # what HAProxy does where the replica cannot say more
        found.error = "closed"
    except httpx.HTTPError as error:
        found.error = repr(error)
    found.ended_s = time.monotonic()


def _read_event(text: str, found: Stream) -> None:
    if text == "[DONE]":
        found.is_whole = True
    elif text:
        event = json.loads(text)
        if "error" in event:
            found.error = event["error"]["code"]
        else:
            found.words += event["choices"][0]["text"].split()


async def ask_until(
    client: httpx.AsyncClient, end_s: float
) -> list[tuple[float, float, int | str]]:
    """Asks again and again; returns when each request began and ended, and its status."""
    found: list[tuple[float, float, int | str]] = []
    while (began_s := time.monotonic()) < end_s:
        body = {"model": "both", "prompt": "new", "max_tokens": 1}
        try:
            answer = await client.post("/v1/completions", json=body, timeout=20)
            status: int | str = answer.status_code
        except httpx.HTTPError as error:
            status = repr(error)
        found.append((began_s, time.monotonic(), status))
        await asyncio.sleep(0.05)
    return found


async def lose(
    url: str, word: str, loss: Callable[[], None]
) -> tuple[list[Stream], list[tuple[float, float, int | str]], float]:
    """Loses the worker while streams run; returns them, the new requests, and when it was lost.

    Args:
        url: The service's address.
        word: Each stream repeats it with its number. What was under way as a replica died is
            suspected of it, and the same request then begins alone on the next replica: so each
            loss has a word of its own.
        loss: Loses the worker.
    """
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        found = [Stream() for _ in range(NUM_STREAMS)]
        streams = [
            asyncio.create_task(read_stream(client, f"{word}{number}", stream))
            for number, stream in enumerate(found)
        ]
        # One that has not begun would get an answer of HAProxy's, and be no stream that broke.
        deadline = time.monotonic() + BEGIN_S
        while not all(stream.words for stream in found):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.05)
        await asyncio.to_thread(loss)
        lost_s = time.monotonic()
        asked = await ask_until(client, lost_s + 2 * RECOVERY_S)
        await asyncio.gather(*streams)
        return found, asked, lost_s


def check_streams(streams: list[Stream], word: str) -> list[Stream]:
    """Returns those that failed; the others are whole, and each failure was told."""
    failed = [stream for stream in streams if not stream.is_whole]
    for number, stream in enumerate(streams):
        # Nothing of another stream, nothing twice, and no gap.
        assert stream.words == [f"{word}{number}"] * len(stream.words)
        if stream.is_whole:
            assert (len(stream.words), stream.error) == (NUM_TOKENS, "")
    assert {stream.error for stream in failed} == {"closed"}, failed
    # Each of the two replicas had some of them.
    assert NUM_STREAMS * 0.1 <= len(failed) <= NUM_STREAMS * 0.9
    return failed


def check_new_requests(asked: list[tuple[float, float, int | str]], lost_s: float) -> None:
    late = [status for began_s, _, status in asked if began_s > lost_s + RECOVERY_S]
    assert late
    assert set(late) == {200}
    assert any(status == 200 and ended_s < lost_s + RECOVERY_S for _, ended_s, status in asked)


def test_models_are_placed_by_label_and_by_shares_of_a_gpu(nodes: Nodes) -> None:
    head, worker = (nodes.network.address(host) for host in (HEAD, WORKER))
    assert set(nodes_of(nodes.cluster, "here").values()) == {head}
    for model in ("there", "third", "half"):
        assert set(nodes_of(nodes.cluster, model).values()) == {worker}
    assert sorted(nodes_of(nodes.cluster, "both").values()) == sorted([head, worker])
    assert sorted(nodes_of(nodes.cluster, "router").values()) == sorted([head, worker])


@pytest.mark.parametrize("model", MODELS)
def test_both_addresses_serve_all_models(nodes: Nodes, model: str) -> None:
    for url in (nodes.cluster.url, nodes.worker.url):
        body = {"model": model, "prompt": "one two", "max_tokens": 3}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=20)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"].split() == ["one", "two", "one"]
        listed = httpx.get(f"{url}/v1/models", timeout=20).json()["data"]
        assert [entry["id"] for entry in listed] == MODELS


def test_a_scrape_at_either_address_has_the_replicas_of_both(nodes: Nodes) -> None:
    replicas = set(nodes_of(nodes.cluster, "both"))
    for url in (nodes.cluster.url, nodes.worker.url):
        page = httpx.get(f"{url}/models/both/metrics", timeout=20)
        assert page.status_code == 200, page.text
        found = {each.name: each.samples for each in text_string_to_metric_families(page.text)}
        ups = {sample.labels["replica"]: sample.value for sample in found[UP]}
        assert ups == dict.fromkeys(replicas, 1)


def test_rays_ports_ask_for_the_token_between_nodes(nodes: Nodes, tmp_path: Path) -> None:
    """And replicas listen on the node's addresses, not on all."""
    listeners = find_listeners(nodes.cluster.run_id)
    replicas = [each for each in listeners if 30000 <= each.port <= 31000]
    own = {"127.0.0.1", nodes.network.address(HEAD)}
    assert {each.address for each in replicas} == own
    trophy = tmp_path / "trophy"
    orders = {
        "address": nodes.network.address(HEAD),
        "ports": sorted({each.port for each in listeners if each.port}),
        "unpickle": [each.port for each in listeners if "ServeReplica" in each.title],
        "dashboards": [nodes.cluster.dashboard_port],
        "sockets": [],
        "files": [],
        "open": [nodes.cluster.port],
        "command": f"touch {trophy}",
    }
    (tmp_path / "orders.json").write_text(json.dumps(orders))
    reached = json.loads(
        subprocess.run(
            [sys.executable, str(INTRUDER), str(tmp_path / "orders.json")],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
    )
    assert reached["jobs"] == {str(nodes.cluster.dashboard_port): [401, 401]}
    assert not trophy.exists()


def test_a_killed_node_costs_its_own_streams_only(nodes: Nodes) -> None:
    streams, asked, lost_s = asyncio.run(lose(nodes.cluster.url, "k", nodes.worker.kill))
    for stream in check_streams(streams, "k"):
        assert stream.ended_s < lost_s + RECOVERY_S
    check_new_requests(asked, lost_s)
    refused = httpx.post(
        f"{nodes.cluster.url}/v1/completions", json={"model": "there", "prompt": "a"}, timeout=30
    )
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "model_unavailable"

    nodes.worker.start()
    wait_until(lambda: is_complete(nodes), "the lost replicas are placed again")


def test_a_silent_node_costs_its_own_streams_only(nodes: Nodes) -> None:
    """Neither side closes the connection, as when a machine loses its power."""
    streams, asked, lost_s = asyncio.run(
        lose(nodes.cluster.url, "s", lambda: nodes.network.unplug(WORKER))
    )
    for stream in check_streams(streams, "s"):
        assert stream.ended_s < lost_s + SILENCE_S + RECOVERY_S
    check_new_requests(asked, lost_s)
