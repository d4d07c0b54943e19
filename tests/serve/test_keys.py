"""A service that asks for keys: the router, a model's own address, a replica's own port."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import importlib.util
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anthropic
import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.fuzz.credentials import Keys
from tests.fuzz.hostile import PARTS, Hostile, lasting
from tests.fuzz.leaks import find_in_files
from tests.serve.browser import open_browser
from tests.serve.whole_service.conftest import RAY_ENV, START_TIMEOUT_S
from tests.support.cli_service import run_cli
from tests.support.otlp_receiver import OtlpReceiver, attributes_of, otlp_receiver
from tests.support.prometheus_server import Target, is_empty, panels, running_prometheus
from truthgpt_serve.access.credentials import create_key
from truthgpt_serve.access.key_edit import add_key, revoke_key, rotate_key
from truthgpt_serve.cluster.haproxy.direct import WAY_HEADER
from truthgpt_serve.cluster.processes import find_run

LIMIT_S = 120.0
REREAD_S = 2.0
"""In which a change counts; a busy machine has longer."""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 2}
ASKED: Any = CHAT["messages"]
SLASHED = "org/echo:1"
WAYS = ("", "/models/echo")
LOGGING = {"encoding": "JSON", "enable_access_log": True}
FEW_ENGINE = {"token_interval_s": 0.05}
SCALED = {
    "max_ongoing_requests": 1,
    "max_queued_requests": 20,
    "engine": FEW_ENGINE,
    "autoscaling": {
        "min_replicas": 0,
        "max_replicas": 2,
        "target_queue_s": 1,
        "downscale_delay_s": 2,
    },
}
PLAYGROUND = {
    "name": "ui",
    "route_prefix": "/ui",
    "import_path": "truthgpt_serve.app:playground",
    "args": {"cpus": 0.1},
}
BOARDS = RAY_ENV.parents[1] / "k8s" / "components" / "monitoring" / "dashboards"
TENANT_PANELS = {
    "Requests",
    "Refusals by reason",
    "Share of limits in use",
    "Tokens",
    "Time to the first piece of the answer",
    "Time to the end of the answer",
    "Wait for a turn",
    "Time of each output token",
}
"""Those that a model of text fills."""
KEPT = "return sessionStorage.getItem('truthgpt-api-key')"


@dataclass(frozen=True)
class Guarded:
    """The running service and its keys.

    Attributes:
        cluster: Its cluster.
        file: The file with the keys.
        keys: The keys by name; `narrow` may use `other` only.
        replica: The address of a replica's own port.
        traces: Gets the spans of all requests.
    """

    cluster: LocalCluster
    file: Path
    keys: dict[str, str]
    replica: str
    traces: OtlpReceiver

    def base(self, way: str) -> str:
        return self.replica if way == "port" else f"{self.cluster.url}{way}"

    def read_logs(self) -> str:
        files = (self.cluster.folder / "ray" / "session_latest" / "logs").rglob("*")
        return "\n".join(path.read_text(errors="replace") for path in files if path.is_file())


@pytest.fixture(scope="module")
def traces() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, traces: OtlpReceiver) -> Iterator[Guarded]:
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys = {
        "team": add_key(file, {"name": "team"}),
        "narrow": add_key(file, {"name": "narrow", "models": ["other"]}),
        "alias": add_key(file, {"name": "alias", "models": ["gpt-4o-mini"]}),
        "slashed": add_key(file, {"name": "slashed", "models": [SLASHED]}),
        "greedy": add_key(file, {"name": "greedy", "models": ["few"]}),
        "steady": add_key(file, {"name": "steady", "models": ["few"]}),
        "modest": add_key(file, {"name": "modest", "models": ["few"], "tokens_per_minute": 120}),
    }
    auth = {"keys_file": str(file)}
    small = {"model": {"family": "echo"}, "hardware": {"cpus": 0.1, "gpus": 0}, "auth": auth}
    with LocalCluster(RAY_ENV, env={"OTEL_EXPORTER_OTLP_ENDPOINT": traces.endpoint}) as cluster:
        aliases = {"serving": {"aliases": ["gpt-4o-mini", SLASHED], "num_replicas": 2}}
        few = {"max_ongoing_requests": 2, "max_queued_requests": 40, "engine": FEW_ENGINE}
        applications = [
            model_application("echo", {**small, **aliases}),
            {**model_application("other", small), "logging_config": LOGGING},
            model_application("few", {**small, "serving": few}),
            model_application("scaled", {**small, "serving": SCALED}),
            {
                **router_application(cluster.port, num_replicas=1, auth=auth),
                "logging_config": LOGGING,
            },
            *([] if importlib.util.find_spec("gradio") is None else [PLAYGROUND]),
        ]
        cluster.deploy(applications)
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        replica = f"{replica_address(cluster, 'echo')}/models/echo"
        yield Guarded(cluster, file, keys, replica, traces)


def test_what_keeps_usage_starts_with_the_router(guarded: Guarded) -> None:
    assert usage_keeper(guarded.cluster).is_running()


def test_a_limited_key_counts_on_all_ways_together(guarded: Guarded) -> None:
    key = add_key(guarded.file, {"name": "limited", "requests_per_minute": 9})
    ways = [("", {}), ("", {WAY_HEADER: "router"}), ("/models/echo", {}), ("port", {})]

    def ask(way: str, more: dict[str, str]) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", **more}
        url = f"{guarded.base(way)}/v1/chat/completions"
        return httpx.post(url, json=CHAT, headers=headers, timeout=LIMIT_S)

    deadline = time.monotonic() + LIMIT_S
    for way, more in ways:  # each process reads the new key by itself
        while (first := ask(way, more)).status_code == 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    left = []
    for at in range(10):
        answer = ask(*ways[at % len(ways)])
        if answer.status_code == 429:
            break
        left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
    assert int(first.headers["x-ratelimit-limit-requests"]) == 9
    assert left == list(range(left[0], -1, -1))
    for way, more in ways:
        refused = ask(way, more)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 61


async def use_few(guarded: Guarded) -> tuple[list[float], list[int], float]:
    """One key asks for more than the model can do at once; returns how another one fares.

    Returns:
        How long its requests took, in seconds; the statuses of the first key's; how long those
        took together.
    """
    url = f"{guarded.cluster.url}/v1/chat/completions"
    began_s = time.monotonic()
    async with httpx.AsyncClient(timeout=LIMIT_S) as client:

        async def ask(key: str) -> int:
            body = {**CHAT, "model": "few", "max_tokens": 10}
            headers = {"authorization": f"Bearer {guarded.keys[key]}"}
            answer = await client.post(url, json=body, headers=headers)
            assert answer.status_code in (200, 429), answer.text
            assert answer.status_code == 200 or key == "greedy", answer.text
            return answer.status_code

        burst = [asyncio.create_task(ask("greedy")) for _ in range(60)]
        await asyncio.sleep(0.5)
        times = []
        for _ in range(4):
            asked_s = time.monotonic()
            await ask("steady")
            times.append(time.monotonic() - asked_s)
        statuses = list(await asyncio.gather(*burst))
    return times, statuses, time.monotonic() - began_s


def test_a_burst_of_one_key_does_not_hold_up_another(guarded: Guarded) -> None:
    times, statuses, whole_s = asyncio.run(use_few(guarded))
    # Two at a time, half a second each: one that comes last would wait for ten seconds.
    assert whole_s > 8
    assert max(times) < 3
    assert set(statuses) == {200, 429}
    assert 38 <= statuses.count(200) <= 42


def num_replicas(cluster: LocalCluster) -> int:
    deployments = cluster.details()["applications"]["scaled"]["deployments"]
    return int(deployments["ModelReplica"]["target_num_replicas"])


async def use_scaled(guarded: Guarded) -> tuple[list[int], list[int], set[tuple[str, float]]]:
    """Asks a model that has no replica, and then for more than one can do in time.

    Returns:
        The statuses; how many replicas there were; the states that the metrics showed.
    """
    headers = {"authorization": f"Bearer {guarded.keys['team']}"}
    messages = [{"role": "user", "content": "word " * 20}]  # which take a second
    body = {"model": "scaled", "messages": messages, "max_tokens": 20}
    seen, states = [num_replicas(guarded.cluster)], set()
    async with httpx.AsyncClient(timeout=2 * LIMIT_S, headers=headers) as client:

        async def ask() -> int:
            url = f"{guarded.cluster.url}/v1/chat/completions"
            return (await client.post(url, json=body)).status_code

        statuses = [await ask()]
        deadline = time.monotonic() + 2 * LIMIT_S

        async def keep_asking() -> None:
            while max(seen) < 2 and time.monotonic() < deadline:
                statuses.append(await ask())

        burst = [asyncio.create_task(keep_asking()) for _ in range(14)]
        while not all(each.done() for each in burst):
            await asyncio.sleep(0.5)
            seen.append(await asyncio.to_thread(num_replicas, guarded.cluster))
            page = (await client.get(f"{guarded.cluster.url}/models/scaled/metrics")).text
            states |= {
                (sample.labels["state"], sample.value)
                for family in text_string_to_metric_families(page)
                for sample in family.samples
                if sample.name == "truthgpt_replica_requests"
            }
        await asyncio.gather(*burst)
    return statuses, seen, states


def test_a_model_scales_by_the_time_that_requests_of_keys_wait(guarded: Guarded) -> None:
    statuses, seen, states = asyncio.run(use_scaled(guarded))
    assert set(statuses) == {200}  # the first was held while a replica started
    assert seen[0] == 0
    assert max(seen) == 2
    # One at a time; those that wait in the replica for their turn are seen as waiting.
    assert {value for state, value in states if state == "ongoing"} <= {0, 1}
    assert max(value for state, value in states if state == "queued") >= 5
    deadline = time.monotonic() + 2 * LIMIT_S
    while num_replicas(guarded.cluster):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_tokens_are_counted_and_limited(guarded: Guarded) -> None:
    url = f"{guarded.cluster.url}/v1/chat/completions"
    headers = {"authorization": f"Bearer {guarded.keys['modest']}"}
    statuses = []
    for _ in range(30):
        answer = httpx.post(
            url, json={**CHAT, "model": "few", "stream": True}, headers=headers, timeout=LIMIT_S
        )
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            break
        assert answer.headers["x-ratelimit-limit-tokens"] == "120"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.json()["error"]["message"].startswith("The key 'modest' may use 120 tokens in a")
    assert "x-ratelimit-reset-tokens" in answer.headers
    page = httpx.get(
        f"{guarded.cluster.url}/models/few/metrics",
        headers={"authorization": f"Bearer {guarded.keys['modest']}"},
        timeout=LIMIT_S,
    ).text
    found = {
        (
            sample.name,
            sample.labels["key"],
            sample.labels.get("kind", sample.labels.get("outcome")),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if "key" in sample.labels
    }
    assert found["truthgpt_key_requests_total", "modest", "ok"] >= len(statuses) - 1
    assert found["truthgpt_key_requests_total", "modest", "refused"] >= 1
    assert found["truthgpt_key_tokens_total", "modest", "completion"] >= 2 * (len(statuses) - 1)
    assert found["truthgpt_key_tokens_total", "modest", "prompt"] >= 2 * (len(statuses) - 1)


def has_failed(cluster: LocalCluster, application: str) -> bool:
    return cluster.statuses().get(application) == "DEPLOY_FAILED"


def server_states(admin: Path) -> set[str]:
    """Returns what HAProxy thinks of the models' replicas, of those that it checks."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT_S)
        client.connect(str(admin))
        client.sendall(b"show stat\n")
        text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    rows = list(csv.DictReader(text.removeprefix("# ").splitlines()))
    own = [row for row in rows if row["svname"] not in ("BACKEND", "FRONTEND")]
    return {row["status"] for row in own if "echo" in row["pxname"] and not int(row["bck"])}


def replica_address(cluster: LocalCluster, application: str) -> str:
    """Returns where a replica listens itself."""
    for pid in cluster.replica_pids(application):
        for found in psutil.Process(pid).net_connections("tcp"):
            address = f"http://127.0.0.1:{found.laddr.port}"
            if found.status == psutil.CONN_LISTEN:
                with contextlib.suppress(httpx.HTTPError):
                    path = f"{address}/models/{application}/health"
                    if httpx.get(path, timeout=LIMIT_S).status_code == 200:
                        return address
    raise AssertionError("no replica listens")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def post(base: str, headers: dict[str, str], body: Any = CHAT, path: str = "") -> httpx.Response:
    path = path or "/v1/chat/completions"
    return httpx.post(f"{base}{path}", json=body, headers=headers, timeout=LIMIT_S)


def wait_for(check: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Waits until a check holds."""
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("way", [*WAYS, "port"])
def test_only_with_a_key(guarded: Guarded, way: str) -> None:
    base = guarded.base(way)
    assert post(base, bearer(guarded.keys["team"])).status_code == 200
    assert post(base, {"x-api-key": guarded.keys["team"]}).status_code == 200
    for headers in ({}, bearer("wrong"), bearer(guarded.keys["team"][:-1]), {"x-api-key": "no"}):
        for path in ("/v1/chat/completions", "/v1/infer", "/v1/audio/transcriptions"):
            answer = post(base, headers, path=path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.headers["x-request-id"]
    for path in ("/v1/models", "/metrics", "/v1/models/echo", "/nothing"):
        assert httpx.get(f"{base}{path}", timeout=LIMIT_S).status_code == 401
        assert httpx.head(f"{base}{path}", timeout=LIMIT_S).status_code == 401
    assert httpx.get(f"{base}/health", timeout=LIMIT_S).status_code == 200


def test_haproxy_believes_in_the_replicas(guarded: Guarded) -> None:
    """Else it sends their requests to Ray's fallback proxy, and none straight to them."""
    server = guarded.replica.removesuffix("/models/echo")
    assert httpx.get(f"{server}/-/healthz", timeout=LIMIT_S).status_code == 200
    asked = [post(guarded.cluster.url, bearer(guarded.keys["team"])) for _ in range(20)]
    assert {answer.status_code for answer in asked} == {200}
    admin = sorted(guarded.cluster.folder.rglob("admin*.sock"))
    assert admin, sorted(guarded.cluster.folder.glob("haproxy*/*"))
    assert server_states(admin[0]) == {"UP"}


def test_what_stays_open(guarded: Guarded) -> None:
    url = guarded.cluster.url
    for path in ("/health", "/ready", "/v2/health/live"):
        assert httpx.get(f"{url}{path}", timeout=LIMIT_S).status_code == 200
    assert httpx.get(url, timeout=LIMIT_S).status_code == 307
    page = {"origin": "http://localhost:5173", "access-control-request-method": "POST"}
    for way in WAYS:
        path = f"{url}{way}/v1/chat/completions"
        assert httpx.options(path, headers=page, timeout=LIMIT_S).status_code == 204
        refused = httpx.post(path, json=CHAT, headers=page, timeout=LIMIT_S)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == page["origin"]


@pytest.mark.parametrize("way", WAYS)
def test_the_client_of_openai(guarded: Guarded, way: str) -> None:
    options: Any = {"base_url": f"{guarded.base(way)}/v1", "max_retries": 0, "timeout": LIMIT_S}
    messages: Any = CHAT["messages"]
    with openai.OpenAI(api_key=guarded.keys["team"], **options) as client:
        chunks = client.chat.completions.create(
            model="echo", messages=messages, max_tokens=2, stream=True
        )
        assert [chunk.model for chunk in chunks]
        assert "echo" in {model.id for model in client.models.list()}
    with (
        openai.OpenAI(api_key="sk-wrong", **options) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.chat.completions.create(model="echo", messages=messages)
    assert raised.value.code == "invalid_api_key"
    assert "sk-wrong" not in str(raised.value)


HOSTILE = {
    "two headers": b"authorization: Bearer %b\r\nauthorization: Bearer %b\r\n",
    "two kinds": b"authorization: Bearer x\r\nx-api-key: %b\r\n",
    "no scheme": b"authorization: %b\r\n",
    "another scheme": b"authorization: Basic %b\r\n",
    "in two words": b"authorization: Bearer %b %b\r\n",
    "in quotes": b'authorization: Bearer "%b"\r\n',
    "empty": b"authorization: Bearer \r\nx-api-key:\r\n",
    "not ASCII": b"authorization: Bearer \xff\xfe%b\r\n",
    "with a null": b"authorization: Bearer %b\0\r\n",
    "long": b"authorization: Bearer " + b"x" * 8000 + b"\r\n",
    "too long": b"authorization: Bearer " + b"x" * (1 << 20) + b"\r\n",
    "folded": b"authorization: Bearer\r\n %b\r\n",
    "a WebSocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "a form": b"content-type: multipart/form-data; boundary=b\r\n",
    "a body to come": b"content-length: 1000000\r\nexpect: 100-continue\r\n",
}


@pytest.mark.parametrize("way", [*WAYS, "port"])
def test_hostile_heads(guarded: Guarded, way: str) -> None:
    url = httpx.URL(guarded.base(way))
    key = guarded.keys["team"].encode()
    statuses = {}
    for name, head in HOSTILE.items():
        method = b"GET" if "WebSocket" in name else b"POST"
        lines = head.replace(b"%b", key)
        start = b"%b %b/v1/infer HTTP/1.1\r\nhost: x\r\n" % (method, url.raw_path.rstrip(b"/"))
        with socket.create_connection((url.host, url.port or 80), LIMIT_S) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(start + lines + b"\r\n")
            with contextlib.suppress(ConnectionError):
                statuses[name] = int(client.recv(4096).split()[1])
    # HAProxy reads a body as far as its buffer goes, to find `model`.
    assert statuses.pop("a body to come") == (401 if way == "port" else 100)
    refused = {name: status for name, status in statuses.items() if status in (400, 401, 403, 431)}
    assert refused == statuses
    assert statuses["a WebSocket"] in (401, 403)
    asked = ("two headers", "two kinds", "no scheme", "in two words", "empty", "a form")
    assert {statuses[name] for name in asked} == {401}
    assert post(guarded.base(way), bearer(guarded.keys["team"])).status_code == 200


def test_errors_of_the_messages_api(guarded: Guarded) -> None:
    for way in (*WAYS, "port"):
        answer = post(guarded.base(way), {"x-api-key": "wrong"}, path="/v1/messages")
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


def test_the_models_of_a_key(guarded: Guarded) -> None:
    narrow, url = bearer(guarded.keys["narrow"]), guarded.cluster.url
    assert post(url, narrow, {**CHAT, "model": "other"}).status_code == 200
    for base in (url, f"{url}/models/echo", guarded.replica):
        for body in (CHAT, {**CHAT, "model": "gpt-4o-mini"}):
            answer = post(base, narrow, body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    listed = httpx.get(f"{url}/v1/models", headers=narrow, timeout=LIMIT_S).json()["data"]
    assert [model["id"] for model in listed] == ["other"]
    for path in ("/v1/models/echo", "/models/echo/metrics", "/models/echo/v1/models"):
        assert httpx.get(f"{url}{path}", headers=narrow, timeout=LIMIT_S).status_code == 404
    alias = bearer(guarded.keys["alias"])
    for base in (url, f"{url}/models/echo"):
        assert post(base, alias, {**CHAT, "model": "gpt-4o-mini"}).status_code == 200
        assert post(base, alias).status_code == 404


@pytest.mark.parametrize("way", [*WAYS, "port"])
def test_a_key_of_a_name_with_a_slash(guarded: Guarded, way: str) -> None:
    base, headers = guarded.base(way), bearer(guarded.keys["slashed"])
    assert post(base, headers, {**CHAT, "model": SLASHED}).status_code == 200
    assert post(base, headers).status_code == 404
    for name in (SLASHED, quote(SLASHED, safe="")):
        card = httpx.get(f"{base}/v1/models/{name}", headers=headers, timeout=LIMIT_S)
        assert (card.status_code, card.json()["id"]) == (200, SLASHED)
        for method, path in (("GET", ""), ("POST", "/infer"), ("POST", "/versions/1/infer")):
            url = f"{base}/v2/models/{name}{path}"
            answer = httpx.request(method, url, json={}, headers=headers, timeout=LIMIT_S)
            assert answer.status_code == 400, url  # it takes no tensors
            assert "cannot answer" in answer.json()["error"]
    for path in ("/v1/models/echo", "/v1/models/org", "/v2/models/echo", "/v2/models/org/echo"):
        answer = httpx.get(f"{base}{path}", headers=headers, timeout=LIMIT_S)
        assert answer.status_code == 404, path
    lost = httpx.get(f"{guarded.cluster.url}/models/{SLASHED}/v1/models", headers=headers)
    assert lost.status_code == 404
    assert lost.json()["error"]["message"].endswith("is an alias: its address is /models/echo")


def test_processes_of_the_service_ask_each_other(guarded: Guarded) -> None:
    team, url = bearer(guarded.keys["team"]), guarded.cluster.url
    page = httpx.get(f"{url}/models/echo/metrics", headers=team, timeout=LIMIT_S).text
    assert page.count("truthgpt_replica_up{") == 2
    assert page.count("truthgpt_replica_up{") == page.count("truthgpt_replica_memory_bytes{")


def test_the_client_of_anthropic(guarded: Guarded) -> None:
    for way in WAYS:
        options: Any = {"base_url": guarded.base(way), "max_retries": 0, "timeout": LIMIT_S}
        for key, error in (
            (guarded.keys["narrow"], anthropic.NotFoundError),
            ("sk-wrong", anthropic.AuthenticationError),
        ):
            with anthropic.Anthropic(api_key=key, **options) as client, pytest.raises(error):
                client.messages.create(model="echo", max_tokens=2, messages=ASKED)
        with anthropic.Anthropic(api_key=guarded.keys["team"], **options) as client:
            found: Any = client.messages.create(model="echo", max_tokens=2, messages=ASKED)
        assert found.content[0].text.split() == ["one", "two"]


def test_the_command_line(guarded: Guarded) -> None:
    url = {"TRUTHGPT_URL": guarded.cluster.url}
    refused = run_cli("models", env=url)
    assert refused.returncode == 1
    assert "set TRUTHGPT_API_KEY" in refused.stderr
    keyed = {**url, "TRUTHGPT_API_KEY": guarded.keys["team"]}
    shown = run_cli("models", "--json", env=keyed)
    states = {model["name"]: model["state"] for model in json.loads(shown.stdout)["models"]}
    assert states == dict.fromkeys(("echo", "few", "other", "scaled"), "RUNNING")
    said = run_cli("chat", "echo", "-p", "one two", env=keyed)
    assert (said.returncode, bool(said.stdout.strip())) == (0, True)


@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs the extra `ui`")
def test_the_playground_keeps_the_key_of_a_tab(guarded: Guarded) -> None:
    # Its process starts for this first visitor, and imports Gradio.
    page = f"{guarded.cluster.url}/ui/"
    wait_for(lambda: httpx.get(page, timeout=LIMIT_S).status_code == 200, START_TIMEOUT_S)
    with open_browser() as browser:
        browser.driver.get(f"{guarded.cluster.url}/ui/")
        needed = "enter an API key at the top of the page"
        browser.wait(".tg-fault", needed, limit_s=300)  # its process starts
        browser.open("API key")
        browser.field("API key").send_keys(guarded.keys["team"])
        browser.until(lambda: browser.field("Model").get_attribute("value"), "a model")
        assert browser.find(".tg-fault") == []
        assert browser.driver.execute_script(KEPT) == guarded.keys["team"]
        assert browser.driver.execute_script("return localStorage.length") == 0
        browser.driver.refresh()
        browser.until(lambda: browser.field("Model").get_attribute("value"), "a model")
        assert guarded.keys["team"] not in browser.driver.page_source
        browser.driver.switch_to.new_window("tab")
        browser.driver.get(f"{guarded.cluster.url}/ui/")
        browser.wait(".tg-fault", needed)
        assert browser.driver.execute_script(KEPT) is None


def test_changes_count_without_a_restart(guarded: Guarded) -> None:
    bases = [guarded.base(way) for way in (*WAYS, "port")]
    key = add_key(guarded.file, {"name": "late"})

    def works() -> bool:
        return all(post(base, bearer(key)).status_code == 200 for base in bases)

    def fails() -> bool:
        return all(post(base, bearer(key)).status_code == 401 for base in bases)

    wait_for(works)
    before, key = key, rotate_key(guarded.file, "late", grace_s=3600)
    wait_for(works)
    assert post(bases[0], bearer(before)).status_code == 200
    revoke_key(guarded.file, "late")
    wait_for(fails)
    text = guarded.file.read_text()
    guarded.file.write_text("keys: [")
    time.sleep(REREAD_S)
    team = bearer(guarded.keys["team"])
    assert [post(base, team).status_code for base in bases] == [200] * 3
    guarded.file.unlink()
    time.sleep(REREAD_S)
    assert [post(base, team).status_code for base in bases] == [200] * 3
    assert [post(base, {}).status_code for base in bases] == [401] * 3
    guarded.file.write_text(text)


def test_usage_is_whole_though_its_process_is_killed(guarded: Guarded) -> None:
    url, counted = guarded.cluster.url, bearer(add_key(guarded.file, {"name": "counted"}))
    admin = add_key(guarded.file, {"name": "billing", "admin": True, "models": ["other"]})
    bases = [guarded.base(way) for way in (*WAYS, "port")]
    path = f"{url}/v1/usage?group_by=key,model"

    def read() -> Any:
        answer = httpx.get(path, headers=bearer(admin), timeout=LIMIT_S).json()
        found = {(row["key"], row["model"]): row for row in answer.get("data", ())}
        return found.get(("counted", "echo"), {})

    wait_for(lambda: httpx.get(path, headers=bearer(admin), timeout=LIMIT_S).status_code == 200)
    wait_for(lambda: all(post(base, counted).status_code != 401 for base in bases for _ in "1234"))
    time.sleep(5)  # in which those are counted
    before = read()
    assert before["requests"] >= len(bases)
    refused = httpx.get(path, headers=counted, timeout=LIMIT_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        403,
        "insufficient_permissions",
    )
    used, rounds = [0, 0], 3
    for at in range(rounds):
        for base in bases:
            answer = post(base, counted).json()["usage"]
            used = [used[0] + answer["prompt_tokens"], used[1] + answer["completion_tokens"]]
            assert post(base, counted, {**CHAT, "max_tokens": -1}).status_code == 400
        if at < rounds - 1:
            keeper = usage_keeper(guarded.cluster)
            keeper.kill()
            keeper.wait(LIMIT_S)
    expected = {
        "requests": before["requests"] + 2 * rounds * len(bases),
        "errors": before["errors"] + rounds * len(bases),
        "prompt_tokens": before["prompt_tokens"] + used[0],
        "completion_tokens": before["completion_tokens"] + used[1],
    }
    wait_for(lambda: read().get("requests", 0) >= expected["requests"])
    assert {name: read()[name] for name in expected} == expected
    assert guarded.file.with_name("keys.usage.sqlite").exists()
    shown = run_cli("usage", env={"TRUTHGPT_URL": url, "TRUTHGPT_API_KEY": admin})
    assert shown.returncode == 0, shown.stderr
    assert f"counted {expected['requests']} " in " ".join(shown.stdout.split())


def usage_keeper(cluster: LocalCluster) -> psutil.Process:
    """Returns the process of the actor that keeps usage; waits until it is there."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for process in find_run(cluster.run_id):
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(process.pid).cmdline()[:1] == ["ray::UsageKeeper"]:
                    return psutil.Process(process.pid)
        time.sleep(0.05)
    raise AssertionError("no process keeps usage")


def test_each_request_has_a_line_where_it_ends(guarded: Guarded) -> None:
    key, other = guarded.keys["narrow"], {**CHAT, "model": "other"}
    for way, asked in (("", "direct"), ("", "router"), ("/models/other", "mounted")):
        headers = {**bearer(key), WAY_HEADER: asked} if asked == "router" else bearer(key)
        answer = post(guarded.base(way), {**headers, "x-request-id": f"line-{asked}"}, other)
        assert answer.status_code == 200
    unknown = {**bearer(key), WAY_HEADER: "router", "x-request-id": "line-unknown"}
    assert post(guarded.base(""), unknown, CHAT).status_code == 404
    refused = {**bearer("tgs-wrong"), "x-request-id": "line-refused"}
    assert post(guarded.base("/models/other"), refused, other).status_code == 401

    def lines() -> list[dict[str, Any]]:
        found = (line for line in guarded.read_logs().splitlines() if '"line-' in line)
        return [json.loads(line) for line in found]

    wait_for(lambda: len(lines()) >= 5)
    found = {line["request_id"].removeprefix("line-"): line for line in lines()}
    assert len(lines()) == len(found) == 5
    for asked in ("direct", "router", "mounted"):
        line = found[asked]
        assert (line["application"], line["model"], line["key_name"]) == (
            "other",
            "other",
            "narrow",
        )
        assert (line["status"], line["outcome"], line["completion_tokens"]) == (200, "ok", 2)
        assert line["path"] == "/v1/chat/completions"
        assert 0 <= line["queue_ms"] <= line["first_byte_ms"] <= line["total_ms"] < 1000 * LIMIT_S
    assert (found["unknown"]["status"], found["unknown"]["application"]) == (404, "router")
    assert (found["refused"]["status"], found["refused"]["key_name"]) == (401, None)
    assert "one two" not in json.dumps(lines())


def test_a_trace_goes_through_router_and_replica(guarded: Guarded) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {
        **bearer(guarded.keys["team"]),
        WAY_HEADER: "router",
        "traceparent": f"00-{trace}-{parent}-01",
    }
    assert post(guarded.base(""), headers, CHAT).status_code == 200

    def spans() -> dict[str, Any]:
        return {span.name: span for span in guarded.traces.spans if span.trace_id.hex() == trace}

    wait_for(lambda: len(spans()) == 2)
    found = spans()
    assert found["router POST"].parent_span_id.hex() == parent
    assert found["replica POST"].parent_span_id == found["router POST"].span_id
    told = attributes_of(found["replica POST"])
    assert (told["gen_ai.request.model"], told["truthgpt.key_name"]) == ("echo", "team")
    assert guarded.keys["team"] not in str(guarded.traces.spans)


def test_panels_of_tenants_have_data_in_a_real_prometheus(guarded: Guarded, tmp_path: Path) -> None:
    """`scripts/check_dashboards.py` shows it of all dashboards, with vLLM and images."""
    url = guarded.cluster.url
    key = bearer(add_key(guarded.file, {"name": "shown", "tokens_per_minute": 60}))
    few = {**CHAT, "model": "few", "stream": True, "max_tokens": 4}
    page = f"{url}/models/few/metrics"
    scraper = add_key(guarded.file, {"name": "scraper", "admin": True})
    target = Target("x/truthgpt-engines", page, {"application": "few"}, scraper)
    with running_prometheus(tmp_path, [target]) as server:

        def with_data() -> set[str]:
            board = json.loads((BOARDS / "tenant.json").read_text())
            queries = panels(board)
            return {title for title, _, query in queries if not is_empty(server.query(query))}

        def use() -> bool:
            for headers in (key, bearer(guarded.keys["team"])):  # one within its limits
                post(url, headers, few)
            return with_data() >= TENANT_PANELS

        def reasons() -> list[str]:
            post(url, key, few)
            query = "sum by (reason) (truthgpt_key_refusals_total{key='shown'})"
            return [one["metric"]["reason"] for one in server.query(query)]

        wait_for(use)
        assert [*server.targets().values()] == ["up"]
        wait_for(lambda: reasons() == ["tokens"])


def test_no_key_is_in_a_log(guarded: Guarded) -> None:
    for key in guarded.keys.values():
        for way in WAYS:
            post(guarded.base(way), bearer(key), {"model": "echo"})
    logs = guarded.read_logs()
    assert "keys stay as they were" in logs
    assert not [name for name, key in guarded.keys.items() if key in logs]
    assert "sk-wrong" not in logs


async def test_hostile_requests_with_keys_and_without(guarded: Guarded) -> None:
    """`python -m tests.fuzz.hostile` sends thousands, to more models."""
    good = {"all": guarded.keys["team"], "some": guarded.keys["narrow"]}
    keys = Keys(good, {"unknown": create_key(), "foreign": "sk-" + "a1" * 24})
    before = lasting(guarded.cluster.run_id)
    hostile = Hostile(guarded.cluster.url, 3, ("echo", "other"), keys)
    await hostile.run(250, 4, None)
    hostile.compare(before, lasting(guarded.cluster.run_id), PARTS)
    assert hostile.findings == [], hostile.report()
    assert await hostile.send_slow_again() == len(hostile.slow), hostile.report()
    files = [path for path in guarded.cluster.folder.rglob("*") if path.is_file()]
    assert any("replica_other" in path.name for path in files)
    assert find_in_files(files, keys.secrets()) == []


def test_an_application_that_forgets_its_keys_does_not_start(guarded: Guarded) -> None:
    small = {"model": {"family": "echo"}, "hardware": {"cpus": 0.1, "gpus": 0}}
    auth = {"keys_file": str(guarded.file)}
    deployed = [
        model_application("open", small),
        model_application("echo", {**small, "auth": auth}),
        router_application(guarded.cluster.port, num_replicas=1, auth=auth),
    ]
    guarded.cluster.deploy(deployed)
    wait_for(partial(has_failed, guarded.cluster, "open"), 90)
    message = guarded.cluster.details()["applications"]["open"]["message"]
    assert "asks for no keys" in message, json.dumps(message)
