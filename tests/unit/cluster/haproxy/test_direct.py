"""Which requests HAProxy sends straight to their model, and which to the router."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from benchmarks.haproxy_configuration import ray_configuration
from tests.support.haproxy_process import LIMIT_S, Proxy, running
from truthgpt_serve.cluster.haproxy.configuration import UnknownConfigurationError
from truthgpt_serve.cluster.haproxy.direct import direct_paths, send_direct, write_maps
from truthgpt_serve.cluster.haproxy.limits import MAX_HEADERS
from truthgpt_serve.cluster.haproxy.models import find_backends
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.queue_full import MAX_RETRY_S, PLACE_HEADER

CHAT = "/v1/chat/completions"
HELD = 3
JSON = {"content-type": "application/json"}


def tell(proxy: Proxy, max_body_bytes: int, **held: int) -> None:
    """Says what a router says once a second."""
    with proxy.over_socket() as client:
        query = news_query(max_body_bytes, held)
        assert client.get(f"{NEWS_PATH}?{query}").json() == {"/models/m": "m", "/": "router"}


@pytest.fixture(scope="module")
def running_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("p")) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: Proxy) -> Proxy:
    tell(running_proxy, MAX_BODY_BYTES, m=HELD)
    return running_proxy


def way(proxy: Proxy, body: bytes, path: str = CHAT, **headers: str) -> str:
    """Sends a request and returns who answers it."""
    given = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    with proxy.over_port() as client:
        return str(client.post(path, content=body, headers=given).json()["by"])


STRAIGHT = {
    "plain": b'{"model": "m"}',
    "last": b'{"messages": [{"role": "user", "content": "x"}], "model" : "m"}',
    "behind one within": b'{"metadata": {"models": "router"}, "model":"m"}',
    "as a text": b'{"model": "m", "messages": [{"content": "say \\"model\\": \\"n\\""}]}',
    "escaped text": b'{"model": "m", "prompt": "\\u00e9\\u4e2d"}',
    "long": b'{"prompt": "%s", "model": "m"}' % (b"x" * (MAX_BODY_BYTES - 30)),
}
TO_THE_ROUTER = {
    "another model": b'{"model": "n"}',
    "the router itself": b'{"model": "router"}',
    "no model": b'{"prompt": "m"}',
    "only one within": b'{"metadata": {"model": "m"}}',
    "two": b'{"model": "m", "model": "n"}',
    "two far apart": b'{"model": "m", "prompt": "%s",\n "model"\t: "n"}' % (b"x\\n" * 9000),
    "two, one within": b'{"model": "m", "metadata": {"model": "n"}}',
    "two, one escaped": b'{"model": "m", "mod\\u0065l": "n"}',
    "no text": b'{"model": ["m"]}',
    "empty": b'{"model": ""}',
    "null": b'{"model": null}',
    "odd name": b'{"model": "m/../router"}',
    "padded name": b'{"model": " m"}',
    "a zero byte": b'{"model": "m\\u0000x y"}',
    "a raw zero byte": b'{"model": "m\0x y"}',
    "an array": b'[{"model": "m"}]',
    "no JSON": b"model=m",
    "nothing": b"",
    "too long": b'{"model": "m", "prompt": "%s"}' % (b"x" * MAX_BODY_BYTES),
}


@pytest.mark.parametrize("body", STRAIGHT.values(), ids=STRAIGHT)
def test_a_model_gets_its_requests(proxy: Proxy, body: bytes) -> None:
    seen = len(proxy.model.paths)
    assert way(proxy, body) == "model"
    assert proxy.model.paths[seen:] == [f"/models/m{CHAT}"]


def test_headers_are_counted_before_some_are_added(proxy: Proxy) -> None:
    more = {f"x-{at}": "1" for at in range(MAX_HEADERS - 6)}  # and six of the client's own
    seen = len(proxy.model.paths)
    with proxy.over_port() as client:
        answer = client.post(CHAT, content=b'{"model": "m"}', headers={**JSON, **more})
        assert answer.status_code == 431  # of Python's own server, which takes fewer
        refused = client.post(CHAT, content=b'{"model": "m"}', headers={**JSON, **more, "x": "1"})
    assert refused.status_code == 400
    assert len(proxy.model.paths) == seen


@pytest.mark.parametrize("body", TO_THE_ROUTER.values(), ids=TO_THE_ROUTER)
def test_the_router_gets_all_else(proxy: Proxy, body: bytes) -> None:
    assert way(proxy, body) == "router"
    assert proxy.router.paths[-1] == CHAT


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content_type": "application/json; charset=utf-8"}, "model"),
        ({"content_type": "Application/JSON"}, "model"),
        ({"content_type": "application/jsonl"}, "router"),
        ({"content_type": "text/plain"}, "router"),
        ({"content_type": "multipart/form-data; boundary=x"}, "router"),
        ({"origin": "http://page.example"}, "router"),
        ({"content_encoding": "identity"}, "router"),
        ({"x_truthgpt_way": "router"}, "router"),
        ({"authorization": "Bearer x", "x_request_id": "1"}, "model"),
    ],
    ids=str,
)
def test_headers_decide_too(proxy: Proxy, headers: dict[str, str], expected: str) -> None:
    assert way(proxy, b'{"model": "m"}', **headers) == expected


def test_a_compressed_or_chunked_body_is_the_routers(proxy: Proxy) -> None:
    body = b'{"model": "m"}'
    assert way(proxy, gzip.compress(body), content_encoding="gzip") == "router"
    with proxy.over_port() as client:
        answer = client.post(CHAT, content=iter([body]), headers=JSON)
    assert answer.json() == {"by": "router"}


@pytest.mark.parametrize(
    "path",
    ["/v1/messages", "/v1/models", "/v2/models/m/infer", "/v1/chat%2Fcompletions", "/x", "//v1"],
)
def test_other_paths_are_the_routers(proxy: Proxy, path: str) -> None:
    assert way(proxy, b'{"model": "m"}', path) == "router"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/models/m", "model"),
        ("/models/m/../other/x", "model"),
        ("http://x/models/m/x", "model"),
        ("/models/m%2f..%2fother/", "router"),
        ("/models/%6d/x", "router"),
        ("/%6dodels/m/x", "router"),
        ("/models//m/x", "router"),
        ("/models/./m/x", "router"),
        ("/models/other/../m/x", "router"),
        ("/models/M/x", "router"),
        ("/models/m;a/x", "router"),
        ("/models/m%00/x", "router"),
    ],
)
def test_an_address_leads_to_its_model_as_it_is_written(
    proxy: Proxy, target: str, expected: str
) -> None:
    with proxy.connect() as client:
        request = f"GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        client.sendall(request.encode())
        received = b"".join(iter(lambda: client.recv(65536), b""))
    assert received.endswith(b'{"by": "%b"}' % expected.encode())
    given = (proxy.model if expected == "model" else proxy.router).paths[-1]
    assert given == target  # nothing in it is decoded or resolved


def test_every_direct_path_leads_to_the_model_with_its_query(proxy: Proxy) -> None:
    assert {CHAT, "/v1/completions", "/v1/embeddings", "/v1/infer"} <= {*direct_paths()}
    for path in direct_paths():
        seen = len(proxy.model.paths)
        assert way(proxy, b'{"model": "m"}', f"{path}?a=b") == "model"
        assert proxy.model.paths[seen:] == [f"/models/m{path}?a=b"]


def test_a_model_is_told_how_its_client_reaches_it(proxy: Proxy) -> None:
    way(proxy, b'{"model": "m"}', x_request_disconnect_disabled="1", x_forwarded_proto="https")
    headers = proxy.model.headers
    assert headers["x-forwarded-host"] == headers["host"] == f"127.0.0.1:{proxy.port}"
    assert headers["x-forwarded-proto"] == "https"
    assert headers["x-forwarded-prefix"] == "/"
    assert len(headers["x-request-id"]) == 36  # Ray would make one of its own otherwise
    assert "x-request-disconnect-disabled" not in headers


def test_without_the_routers_word_all_goes_to_the_router(proxy: Proxy) -> None:
    body = b'{"model": "m"}'
    tell(proxy, MAX_BODY_BYTES)  # a model that does not run
    assert way(proxy, body) == "router"
    tell(proxy, 0, m=HELD)  # switched off
    assert way(proxy, body) == "router"
    tell(proxy, len(body) - 1, m=HELD)
    assert way(proxy, body) == "router"
    tell(proxy, len(body), m=HELD)
    assert way(proxy, body) == "model"
    with proxy.over_socket() as client:  # a router that has just started knows nothing
        client.get(NEWS_PATH)
    assert way(proxy, body) == "model"


def test_clients_cannot_say_it(proxy: Proxy) -> None:
    httpx.get(f"{proxy.url}{NEWS_PATH}?{news_query(0, {})}", timeout=LIMIT_S)
    assert way(proxy, b'{"model": "m"}') == "model"


def test_a_full_model_refuses_at_once(proxy: Proxy) -> None:
    body = json.dumps({"model": "m"}).encode()
    proxy.model.released.clear()
    with ThreadPoolExecutor(HELD) as clients, proxy.over_port() as client:
        url = f"{proxy.url}/v1/infer?/wait"
        held = [
            clients.submit(httpx.post, url, content=body, headers=JSON, timeout=LIMIT_S)
            for _ in range(HELD)
        ]
        try:
            deadline = time.monotonic() + LIMIT_S
            while proxy.model.paths.count("/models/m/v1/infer?/wait") < HELD:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            refused = client.post(CHAT, content=body, headers={**JSON, "x-request-id": "own"})
            assert refused.headers["x-request-id"] == "own"
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "overloaded")
            assert f"model 'm' is full: {HELD} requests" in error["message"]
        finally:
            proxy.model.released.set()
        assert {answer.result(LIMIT_S).status_code for answer in held} == {200}


def test_each_of_the_refused_is_told_a_place_of_its_own(proxy: Proxy) -> None:
    """From what the replica's answers say, which clients do not see."""
    body = json.dumps({"model": "m"}).encode()
    tell(proxy, MAX_BODY_BYTES, m=1)
    proxy.model.released.clear()
    proxy.model.more_headers = {PLACE_HEADER: "14000000"}

    def told() -> int:
        refused = httpx.post(f"{proxy.url}{CHAT}", content=body, headers=JSON, timeout=LIMIT_S)
        assert refused.status_code == 429
        seconds = refused.headers["retry-after"]
        assert f"try again in {seconds} s" in refused.json()["error"]["message"]
        return int(seconds)

    try:
        with proxy.over_port() as client, ThreadPoolExecutor(1) as clients:
            answer = client.post(CHAT, content=body, headers=JSON)
            assert answer.status_code == 200
            assert PLACE_HEADER not in answer.headers
            url, before = f"{proxy.url}/v1/infer?/wait", len(proxy.model.paths)
            held = clients.submit(httpx.post, url, content=body, headers=JSON, timeout=LIMIT_S)
            deadline = time.monotonic() + LIMIT_S
            while len(proxy.model.paths) == before:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            # Less the time that has passed, rounded up; at most four queues of one.
            for expected in (14, 28, 42, 56, 56, 56):
                assert expected - 5 <= told() <= expected + 1
            proxy.model.released.set()
            assert held.result(LIMIT_S).status_code == 200
        with proxy.over_socket() as router:
            passed = router.post(f"/models/m{CHAT}", content=body, headers=JSON)
            assert passed.headers[PLACE_HEADER] == "14000000"
    finally:
        proxy.model.released.set()
        proxy.model.more_headers = {}


@pytest.mark.long("waits for limits of time")
def test_before_a_model_has_told_its_speed_it_is_thought_to_take_as_long_again(
    tmp_path: Path,
) -> None:
    body = json.dumps({"model": "m"}).encode()
    with running(tmp_path) as proxy, ThreadPoolExecutor(1) as clients:
        tell(proxy, MAX_BODY_BYTES, m=1)
        proxy.model.released.clear()
        url = f"{proxy.url}/v1/infer?/wait"
        began_s = time.monotonic()
        held = clients.submit(httpx.post, url, content=body, headers=JSON, timeout=LIMIT_S)
        try:
            while not proxy.model.paths:
                assert time.monotonic() - began_s < LIMIT_S
                time.sleep(0.01)
            came_s = time.monotonic()
            for pause_s in (0.0, 2.5, 2.5):
                time.sleep(pause_s)
                refused = httpx.post(
                    f"{proxy.url}{CHAT}", content=body, headers=JSON, timeout=LIMIT_S
                )
                now_s = time.monotonic()
                assert refused.status_code == 429
                told_s = int(refused.headers["retry-after"])
                assert max(1, pause_s) <= told_s <= now_s - began_s + 1
            assert told_s >= 5
            assert now_s - came_s >= 5
        finally:
            proxy.model.released.set()
        assert held.result(LIMIT_S).status_code == 200


@pytest.mark.parametrize("place", ["-14000000", "soon", "9" * 400])
def test_a_speed_that_is_none_has_no_client_wait_for_ever(proxy: Proxy, place: str) -> None:
    proxy.model.more_headers = {PLACE_HEADER: place}
    try:
        with proxy.over_socket() as router:
            assert router.post(f"/models/m{CHAT}", content=b"{}", headers=JSON).status_code == 200
        tell(proxy, MAX_BODY_BYTES, m=0)
        body = json.dumps({"model": "m"}).encode()
        for _ in range(3):
            refused = httpx.post(f"{proxy.url}{CHAT}", content=body, headers=JSON, timeout=LIMIT_S)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= MAX_RETRY_S
    finally:
        proxy.model.more_headers = {}


@pytest.mark.long("waits for limits of time")
def test_a_model_without_a_replica_is_the_routers(tmp_path: Path) -> None:
    with running(tmp_path) as proxy:
        tell(proxy, MAX_BODY_BYTES, m=HELD)
        assert way(proxy, b'{"model": "m"}') == "model"
        proxy.model.refuse()
        deadline = time.monotonic() + LIMIT_S
        while (by := way(proxy, b'{"model": "m"}')) != "router":
            assert by in ("model", "fallback")  # a kept connection, or what waits for a replica
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_map_has_the_models_with_plain_names(tmp_path: Path) -> None:
    applications = {"/models/a.b-c": 1, "/models/m": 2, "/models/x%20y": 3, "/other": 4, "/": 5}
    lines = ray_configuration(tmp_path, 1, applications).read_text().splitlines()
    assert find_backends(lines) == {"a.b-c": "http-a.b-c", "m": "http-m"}
    assert write_maps(lines, {}) == {
        "models.map": "a.b-c http-a.b-c\nm http-m\n",
        "held.map": "",
        "keyed.map": "",
    }
    known = {"held.map": {"m": "3", "a.b-c": "", "gone": "2"}, "keyed.map": {"a.b-c": "1"}}
    written = write_maps(lines, known)
    assert (written["held.map"], written["keyed.map"]) == ("m 3\n", "a.b-c 1\n")


def test_without_a_model_nothing_changes(tmp_path: Path) -> None:
    lines = ray_configuration(tmp_path, 1, {"/": 5}).read_text().splitlines()
    changed = list(lines)
    send_direct(changed, tmp_path, {})
    assert changed == lines


def test_an_unknown_configuration_is_refused(tmp_path: Path) -> None:
    lines = ray_configuration(tmp_path, 1, {"/models/m": 2, "/": 5}).read_text().splitlines()
    with pytest.raises(UnknownConfigurationError):
        send_direct([line for line in lines if not line.startswith("global")], tmp_path, {})
