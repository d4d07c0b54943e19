"""`url` results: the store, its limits, the addresses, and the routes that serve them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.support.image_classes import Plain
from tests.support.servers import serve_asgi
from tests.unit.server.images.test_routes import PROMPT, image_server, image_spec, opened
from truthgpt_serve.cluster.state import ApplicationState, ServeState
from truthgpt_serve.config import RouterConfig, load_model_config
from truthgpt_serve.errors import ExpiredFileError, MissingFileError, ServerError
from truthgpt_serve.http.file_store import (
    FileShelf,
    LocalFileStore,
    StoredFile,
    create_file_id,
    fetch_file,
)
from truthgpt_serve.http.public_url import public_url
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import Application, ModelInstance, create_app

ID = re.compile(r"/v1/files/images/[0-9a-f]{48}-\d+\.(png|jpeg|webp)")


# -- the store


def file_of(num_bytes: int, expires_at_s: float = 100.0) -> StoredFile:
    return StoredFile(bytes(num_bytes), "image/png", expires_at_s)


def test_the_oldest_files_of_a_group_make_room() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "abc":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    shelf.put("x", file_of(90), group="two", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abcx"] == [False, True, True, True]
    assert shelf.num_bytes == 170
    shelf.put("d", file_of(100), group="one", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abcdx"] == [False] * 3 + [True] * 2
    assert shelf.num_bytes == 190


def test_a_file_that_was_fetched_is_not_newer_for_it() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "ab":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    assert shelf.get("a") is not None
    shelf.put("c", file_of(40), group="one", max_bytes=100)
    assert [shelf.get(name) is not None for name in "abc"] == [False, True, True]


@pytest.mark.parametrize(("max_bytes", "left"), [(200, "abc"), (90, "bc"), (50, "c")])
def test_the_room_of_a_group_may_change(max_bytes: int, left: str) -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for name in "ab":
        shelf.put(name, file_of(40), group="one", max_bytes=100)
    shelf.put("c", file_of(40), group="one", max_bytes=max_bytes)
    assert "".join(name for name in "abc" if shelf.get(name)) == left


def test_the_same_id_twice_is_one_file() -> None:
    shelf = FileShelf(clock=lambda: 0.0)
    for num_bytes in (10, 20):
        shelf.put("a", file_of(num_bytes), group="one", max_bytes=100)
    assert shelf.num_bytes == 20


def test_files_expire_in_any_order() -> None:
    now = [0.0]
    shelf = FileShelf(clock=lambda: now[0])
    for name, expires_at_s in (("a", 30.0), ("b", 10.0), ("c", 20.0)):
        shelf.put(name, file_of(1, expires_at_s), group=name, max_bytes=10)
    shelf.put("b", file_of(1, 25.0), group="b", max_bytes=10)  # its first expiry is void
    found = []
    for now[0] in (9.9, 10.0, 20.0, 25.0, 30.0):
        found.append("".join(name for name in "abc" if shelf.get(name)))
    assert found == ["abc", "abc", "ab", "a", ""]
    assert shelf.num_bytes == 0


def test_expired_files_are_freed_though_nobody_asks() -> None:
    async def run() -> tuple[int, int]:
        store = LocalFileStore()
        await store.put(bytes(9), "image/png", group="m", expiry_s=0.1, max_bytes=100)
        before = store.num_bytes
        await asyncio.sleep(0.5)
        return before, store.num_bytes

    assert asyncio.run(run()) == (9, 0)


def test_what_is_not_there_says_why() -> None:
    async def run() -> None:
        store = LocalFileStore()
        file_id = await store.put(b"x", "image/webp", group="m", expiry_s=9, max_bytes=10)
        assert (await fetch_file(store, file_id)).data == b"x"
        with pytest.raises(ExpiredFileError, match="has expired"):
            await fetch_file(store, create_file_id("image/png", time.time() - 1))
        with pytest.raises(MissingFileError, match="made room"):
            await fetch_file(store, create_file_id("image/png", time.time() + 99))
        for wrong in ("", "x.png", file_id + "x", "../" + file_id, file_id.upper(), "é" * 300):
            with pytest.raises(MissingFileError, match="there is no file"):
                await fetch_file(store, wrong)
        with pytest.raises(ServerError, match="max_stored_bytes"):
            await store.put(bytes(11), "image/png", group="m", expiry_s=9, max_bytes=10)

    asyncio.run(run())


def test_ids_cannot_be_guessed() -> None:
    ids = {create_file_id("image/png", 5).partition("-")[0] for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(file_id) == 48 for file_id in ids)


# -- addresses


@pytest.mark.parametrize(
    ("headers", "root", "expected"),
    [
        ({"host": "a:8000"}, "", "http://a:8000/f"),
        ({"host": "a"}, "/models/x", "http://a/models/x/f"),
        ({"host": "a", "x-forwarded-host": "b"}, "/models/x", "http://b/models/x/f"),
        (
            {"host": "a", "x-forwarded-host": "b", "x-forwarded-prefix": "/"},
            "/models/x",
            "http://b/f",
        ),
        (
            {
                "host": "a",
                "x-forwarded-host": "b.org, c",
                "x-forwarded-proto": "HTTPS, http",
                "x-forwarded-prefix": "/ai/",
            },
            "",
            "https://b.org/ai/f",
        ),
        ({"host": "[::1]:80"}, "", "http://[::1]:80/f"),
        ({"host": "a/b?c"}, "", "http://127.0.0.1:7/f"),
        ({"host": "a", "x-forwarded-host": "b<script>"}, "", "http://a/f"),
        ({"host": "a", "x-forwarded-proto": "javascript"}, "", "http://a/f"),
        ({"host": "a", "x-forwarded-prefix": "//evil.org/x"}, "/m", "http://a/m/f"),
        ({"host": "a", "x-forwarded-prefix": ""}, "/m", "http://a/f"),
        ({}, "", "http://127.0.0.1:7/f"),
    ],
)
def test_public_addresses(headers: dict[str, str], root: str, expected: str) -> None:
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"headers": lines, "scheme": "http", "root_path": root, "server": ("127.0.0.1", 7)}
    assert public_url(scope, "/f") == expected


# -- over HTTP


def test_url_results_are_served() -> None:
    with image_server(Plain) as client:
        before = time.time()
        answer = client.images.generate(
            model="painter",
            prompt=PROMPT,
            n=2,
            response_format="url",
            output_format="webp",
            extra_body={"seed": 3},
        )
        assert answer.data is not None
        urls = [item.url or "" for item in answer.data]
        base = str(client.base_url).removesuffix("/v1/")
        assert all(url.startswith(base) and ID.fullmatch(url.removeprefix(base)) for url in urls)
        assert len(set(urls)) == 2
        assert [item.b64_json for item in answer.data] == [None, None]
        for index, url in enumerate(urls):
            found = httpx.get(url)
            assert found.status_code == 200
            assert found.headers["content-type"] == "image/webp"
            assert found.headers["content-length"] == str(len(found.content))
            assert found.headers["x-content-type-options"] == "nosniff"
            age = re.fullmatch(r"private, max-age=(\d+), immutable", found.headers["cache-control"])
            assert age
            assert 3600 - (time.time() - before) - 2 <= int(age[1]) <= 3600
            assert opened(found.content).getpixel((0, 0)) is not None
            assert opened(found.content).size == (48, 32), index
        head = httpx.head(urls[0])
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        assert httpx.post(urls[0]).status_code == 405
        wrong = httpx.get(urls[0].replace(".webp", ".png"))
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "file_not_found")


def test_url_results_expire() -> None:
    with image_server(Plain, {"images": {"url_expiry_s": 1}}) as client:
        answer = client.images.generate(model="painter", prompt=PROMPT, response_format="url")
        assert answer.data is not None
        url = answer.data[0].url or ""
        assert httpx.get(url).status_code == 200
        time.sleep(1.2)
        gone = httpx.get(url)
        assert gone.status_code == 410
        assert gone.json()["error"]["code"] == "file_expired"
        assert gone.json()["error"]["type"] == "invalid_request_error"


def test_the_room_for_url_results_is_bounded() -> None:
    with image_server(Plain, {"images": {"max_stored_bytes": 1000}}) as client:
        urls = []
        for _ in range(12):
            answer = client.images.generate(model="painter", prompt=PROMPT, response_format="url")
            assert answer.data is not None
            urls.append(answer.data[0].url or "")
        states = [httpx.get(url).status_code for url in urls]
        kept = states.count(200)
        assert 1 <= kept < 12
        assert states == [404] * (12 - kept) + [200] * kept


def test_a_result_larger_than_the_room_says_so() -> None:
    with image_server(Plain, {"images": {"max_stored_bytes": 10}}) as client:
        with pytest.raises(openai.InternalServerError, match="max_stored_bytes"):
            client.images.generate(model="painter", prompt=PROMPT, response_format="url")
        assert client.images.generate(model="painter", prompt=PROMPT).data


# -- behind the router


class Mounted:
    """Stands where Serve's proxy stands: mounts an application at /models/painter."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/-/routes":
                headers = [(b"content-length", b"2")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": b"{}"})
                return
            self.headers = dict(scope["headers"])
            scope = {**scope, "root_path": "/models/painter"}
        await self._app(scope, receive, send)


@contextmanager
def routed(store: LocalFileStore) -> Iterator[tuple[str, str, Mounted]]:
    """Yields the addresses of a router and of the model behind it; both use `store`."""
    cfg = {"task": "image-generation"}
    host = ModelInstance(image_spec(Plain), load_model_config(cfg), name="painter", files=store)
    mounted = Mounted(Application(host, owns_host=True))
    state = ServeState(
        {
            "painter": ApplicationState(
                name="painter",
                route_prefix="/models/painter",
                status="RUNNING",
                message="",
                num_running_replicas=1,
                card={},
                deployed_at_s=0.0,
            )
        }
    )
    with serve_asgi(mounted, lifespan="on") as model:
        port = int(model.rpartition(":")[2])
        router = RouterApp(RouterConfig(), lambda: state, ("127.0.0.1", port), files=store)
        with serve_asgi(router, lifespan="on") as url:
            yield url, model, mounted


def make(base: str, **headers: str) -> str:
    body = {"model": "painter", "prompt": PROMPT, "response_format": "url"}
    answer = httpx.post(f"{base}/v1/images/generations", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["data"][0]["url"]
    return url


def test_the_address_is_right_behind_the_router() -> None:
    with routed(LocalFileStore()) as (router, model, mounted):
        url = make(router)
        assert url.startswith(f"{router}/v1/files/images/")
        assert opened(httpx.get(url).content).size == (48, 32)
        assert httpx.head(url).headers["content-type"] == "image/png"
        assert httpx.post(url).status_code == 405
        assert httpx.get(f"{router}/v1/files/images/x.png").json()["error"] == {
            "message": "there is no file 'x.png'",
            "type": "invalid_request_error",
            "param": None,
            "code": "file_not_found",
        }

        direct = make(f"{model}/models/painter")
        assert direct.startswith(f"{model}/models/painter/v1/files/images/")
        assert httpx.get(direct).status_code == 200
        assert mounted.headers.get(b"x-forwarded-prefix") is None


def test_the_router_keeps_what_a_proxy_in_front_says() -> None:
    with routed(LocalFileStore()) as (router, _, mounted):
        front = {"x-forwarded-proto": "https", "x-forwarded-host": "images.example.org"}
        assert make(router, **front).startswith("https://images.example.org/v1/files/images/")
        assert make(router, **{"x-forwarded-proto": "https"}).startswith(
            router.replace("http:", "https:") + "/v1/files/images/"
        )
        prefixed = make(router, **front, **{"x-forwarded-prefix": "/ai"})
        assert prefixed.startswith("https://images.example.org/ai/v1/files/images/")
        assert mounted.headers[b"x-forwarded-prefix"] == b"/ai"


def test_a_router_without_a_store_has_no_files() -> None:
    router = RouterApp(RouterConfig(), ServeState, ("127.0.0.1", 9))
    with serve_asgi(router) as url:
        file_id = create_file_id("image/png", time.time() + 9)
        answer = httpx.get(f"{url}/v1/files/images/{file_id}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


def test_the_default_store_is_the_applications_own() -> None:
    spec = image_spec(Plain)
    apps = [create_app(spec, {"task": "image-generation"}, name="painter") for _ in range(2)]
    with (
        serve_asgi(apps[0], lifespan="on") as first,
        serve_asgi(apps[1], lifespan="on") as second,
    ):
        url = make(first)
        assert httpx.get(url).status_code == 200
        assert httpx.get(url.replace(first, second)).status_code == 404
