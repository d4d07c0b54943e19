"""The example of docs/your-own-model.md, served as the page says: its module comes in a .zip."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install

ROOT = Path(__file__).resolve().parents[3]
WAYS = ("py_modules", "working_dir")


@pytest.fixture(scope="module")
def client(bare: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    page = (ROOT / "docs" / "your-own-model.md").read_text()
    blocks = dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", page, re.DOTALL))
    archive = tmp_path_factory.mktemp("own") / "own.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("own/shouting.py", blocks["shouting.py"])
    config: dict[str, Any] = yaml.safe_load(blocks["shouting.yaml"])
    config["hardware"] = {"cpus": 0.1, "gpus": 0}
    applications = []
    for way in WAYS:
        application = model_application(way.replace("_", "-"), config)
        address = f"file://{archive}"
        application["runtime_env"] = {way: [address] if way == "py_modules" else address}
        applications.append(application)
    install(bare, applications)
    with httpx.Client(base_url=bare.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("way", WAYS)
def test_the_pages_example_is_served(client: httpx.Client, way: str) -> None:
    model = way.replace("_", "-")
    answer = client.post("/v1/infer", json={"model": model, "inputs": {"text": "hello"}})
    assert answer.json() == {"model": model, "outputs": {"text": "HELLO!"}}
    chat = {"model": model, "messages": [{"role": "user", "content": "a b"}]}
    choice = client.post("/v1/chat/completions", json=chat).json()["choices"][0]
    assert choice["message"]["content"].endswith("A B!")


@pytest.mark.parametrize("way", WAYS)
def test_its_exception_is_500_with_the_request_id(client: httpx.Client, way: str) -> None:
    body = {"model": way.replace("_", "-"), "inputs": {"wrong": "hello"}}
    answer = client.post("/v1/infer", json=body, headers={"x-request-id": f"own-{way}"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == f"own-{way}"
    assert f"under request id own-{way}" in answer.json()["error"]["message"]
