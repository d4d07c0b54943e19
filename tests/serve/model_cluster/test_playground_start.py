"""The first visits of the playground, whose process starts for them or finds no room."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install
from tests.serve.browser import open_browser

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra `ui` is not installed", allow_module_level=True)

START_TIMEOUT_S = 300
ANSWER_S = 15
"""For the page that is there at once; a busy machine takes seconds."""
SESSION = "a-tab-that-was-open"
NUM_INPUTS = 5
"""Of the handler that finds the models: the key, and a model of each page."""


def ui(**args: Any) -> dict[str, Any]:
    return {
        "name": "ui",
        "route_prefix": "/ui",
        "import_path": "truthgpt_serve.app:playground",
        "args": args,
    }


def deploy(cluster: LocalCluster, **args: Any) -> None:
    """Deploys a playground that has no process."""
    echo = model_application("echo", {"model": {"family": "echo"}, "hardware": {"cpus": 0.1}})
    install(cluster, [echo], timeout_s=START_TIMEOUT_S)
    install(cluster, [echo, ui(**args)], timeout_s=START_TIMEOUT_S)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (
        httpx.head(f"{cluster.url}/ui/", timeout=ANSWER_S).status_code == 404
    ):  # HAProxy learns it
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def http(bare: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=bare.url, timeout=START_TIMEOUT_S) as client:
        yield client


def first_page(http: httpx.Client) -> str:
    """Returns the page that a visitor sees meanwhile, which is there at once."""
    answer = http.get("/ui/", timeout=ANSWER_S)
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["retry-after"]
    assert http.head("/ui/", timeout=ANSWER_S).status_code == 503
    return answer.text


def wait_for_pages(http: httpx.Client) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while http.get("/ui/").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def models_handler(http: httpx.Client) -> int:
    """Returns the number by which the page asks for the models."""
    handlers = http.get("/ui/config").json()["dependencies"]
    return int(next(one["id"] for one in handlers if one["api_name"] == "find_models"))


def click(http: httpx.Client, handler: int) -> str:
    """Does what an open page does, and returns the events that answer it."""
    body = {
        "data": ["", *[None] * (NUM_INPUTS - 1)],
        "fn_index": handler,
        "session_hash": SESSION,
    }
    joined = http.post("/ui/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    events = []
    with http.stream("GET", f"/ui/gradio_api/queue/data?session_hash={SESSION}") as stream:
        for line in stream.iter_lines():
            events.append(line)
            if "process_completed" in line:
                break
    return "\n".join(events)


def test_a_tab_that_was_open_goes_on_once_the_process_has_started(
    bare: LocalCluster, http: httpx.Client
) -> None:
    deploy(bare)
    assert "The playground starts" in first_page(http)
    wait_for_pages(http)
    handler = models_handler(http)
    assert '"success":true' in click(http, handler).replace(" ", "")
    deploy(bare)
    with ThreadPoolExecutor(1) as pool:
        clicked = pool.submit(click, http, handler)
        assert "The playground starts" in first_page(http)
        assert '"success":true' in clicked.result(START_TIMEOUT_S).replace(" ", "")


def test_the_first_page_becomes_the_playground_by_itself(
    bare: LocalCluster, tmp_path: Path
) -> None:
    deploy(bare)
    with open_browser() as browser:
        browser.driver.get(f"{bare.url}/")
        browser.wait("h1", "The playground starts")
        assert browser.violations() == []
        browser.driver.save_screenshot(str(tmp_path / "start.png"))
        browser.wait("button[role=tab]", "Chat", limit_s=START_TIMEOUT_S)


def test_without_room_the_page_says_so(bare: LocalCluster, http: httpx.Client) -> None:
    deploy(bare, cpus=4000)
    deadline = time.monotonic() + START_TIMEOUT_S
    while "There is no room for the playground" not in (page := first_page(http)):
        assert time.monotonic() < deadline, page
        time.sleep(0.5)
    assert "each needs 4000 CPU" in page
