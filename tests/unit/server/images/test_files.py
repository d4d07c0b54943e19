"""`url` results: the store, its limits, the addresses, and the routes that serve them."""

from __future__ import annotations

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
from truthgpt_serve.http.file_store import (
    LocalFileStore,
    create_file_id,
)
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import Application, ModelInstance, create_app

ID = re.compile(r"/v1/files/images/[0-9a-f]{48}-\d+\.(png|jpeg|webp)")


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
    instance = ModelInstance(image_spec(Plain), load_model_config(cfg), name="painter", files=store)
    mounted = Mounted(Application(instance, owns_instance=True))
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
