"""What a replica tells Serve's controller; its own process, without Ray."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from truthgpt_serve.access.credentials import create_key, digest
from truthgpt_serve.access.settings import Auth
from truthgpt_serve.cluster.start_errors import StartError
from truthgpt_serve.replica.classes import ModelReplica

SICK = """
from truthgpt_serve import register_model

class EngineDeadError(Exception):
    pass

@register_model("sick-{number}")
class Sick:
    def load(self, cfg):
        if cfg["serving"]["engine"].get("fails"):
            raise EngineDeadError("no weights")

    def infer(self, inputs):
        return {{"text": inputs["text"]}}

    def check_health(self):
        raise EngineDeadError("it is dead")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    number = abs(hash(request.node.name)) % 10**6
    (tmp_path / f"sick_{number}.py").write_text(SICK.format(number=number))
    monkeypatch.syspath_prepend(str(tmp_path))
    context = types.SimpleNamespace(app_name="x", replica_tag="x#one")
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    # It changes where Ray's servers of this process listen, and no replica's is started here.
    monkeypatch.setattr("truthgpt_serve.replica.classes.answer_aside", lambda *_: None)
    return f"{number}"


# Serve awaits `__del__`; a plain interpreter does not.
Replica: Any = type("Replica", (ModelReplica,), {"__del__": lambda self: None})


def make_replica(number: str, **engine: Any) -> ModelReplica:
    return Replica(  # type: ignore[no-any-return]
        {
            "model": {"family": f"sick-{number}", "import": f"sick_{number}"},
            "hardware": {"gpus": 0},
            "serving": {"engine": engine},
        }
    )


async def test_the_controller_need_not_import_what_fails(module: str) -> None:
    replica = make_replica(module)
    await replica.__serve_build_asgi_app__()
    with pytest.raises(RuntimeError) as raised:
        await replica.check_health()
    await ModelReplica.__del__(replica)
    assert type(raised.value) is RuntimeError
    assert "EngineDeadError: it is dead" in str(raised.value)
    code = "import pickle, sys, json; pickle.loads(sys.stdin.buffer.read());"
    code += "print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(raised.value), capture_output=True
    )
    modules = json.loads(done.stdout)
    assert not [name for name in modules if name.startswith(("sick", "truthgpt", "vllm"))]


async def test_a_failed_load_begins_with_its_cause(module: str) -> None:
    replica = make_replica(module, fails=True)
    with pytest.raises(StartError) as raised:
        await replica.__serve_build_asgi_app__()
    assert str(raised.value.__cause__) == "EngineDeadError: no weights"


async def test_a_replica_names_the_weights_that_are_gone(module: str) -> None:
    replica = Replica.__new__(Replica)
    model = {"family": f"sick-{module}", "import": f"sick_{module}", "name_or_path": "/gone/model"}
    with pytest.raises(StartError) as raised:
        replica.__init__({"model": model, "hardware": {"gpus": 0}})
    assert "'/gone/model' does not exist" in str(raised.value.__cause__)
    await ModelReplica.__del__(replica)  # an error here would be the last in the log


async def test_its_answers_have_what_clients_need(module: str) -> None:
    page = "https://chat.example.com"
    cfg = {
        "model": {"family": f"sick-{module}", "import": f"sick_{module}"},
        "hardware": {"gpus": 0},
    }
    replica = Replica(cfg, [page])
    app = await replica.__serve_build_asgi_app__()
    body = {"model": "x", "prompt": "a", "stream": True}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        answer = await client.post("/v1/completions", json=body, headers={"origin": page})
        preflight = await client.options(
            "/v1/completions", headers={"origin": page, "access-control-request-method": "POST"}
        )
    await ModelReplica.__del__(replica)
    assert answer.status_code == 200
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["access-control-allow-origin"] == page
    assert "x-request-id" not in answer.headers
    assert preflight.status_code == 204


BATCHES = """
import time
from truthgpt_serve import register_model

@register_model("batches-{number}")
class Batches:
    max_batch_size = 2

    def load(self, cfg):
        pass

    def infer(self, inputs):
        return self.infer_batch([inputs])[0]

    def infer_batch(self, batch):
        time.sleep(0.05)
        return [{{"text": inputs["text"]}} for inputs in batch]
"""
BATCH_KEY = """
    def batch_key(self, inputs):
        return inputs["text"]
"""
STREAM = """
    def stream(self, inputs):
        yield self.infer(inputs)["text"]
"""


@pytest.mark.parametrize("more", ["", BATCH_KEY, STREAM], ids=["plain", "batch_key", "stream"])
async def test_a_flood_of_one_key_holds_no_other_up_in_batches(
    more: str, module: str, tmp_path: Path
) -> None:
    (tmp_path / f"sick_{module}.py").write_text(BATCHES.format(number=module) + more)
    secrets = {name: create_key() for name in ("flood", "calm")}
    entries = [
        {"name": name, "sha256": digest(key.encode()).hex()} for name, key in secrets.items()
    ]
    (tmp_path / "keys.yaml").write_text(json.dumps({"keys": entries}))
    cfg = {
        "model": {"family": f"batches-{module}", "import": f"sick_{module}"},
        "hardware": {"gpus": 0},
    }
    replica = Replica(cfg, auth=Auth(str(tmp_path / "keys.yaml")))
    app = await replica.__serve_build_asgi_app__()
    ended: list[str] = []

    async def ask(name: str, prompt: str) -> None:
        headers = {"authorization": f"Bearer {secrets[name]}"}
        body = {"model": "x", "prompt": prompt}
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        ended.append(name)

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://x", timeout=60
    ) as client:
        flood = [asyncio.create_task(ask("flood", f"{at}")) for at in range(60)]
        while len(ended) < 4:  # it is in full swing
            await asyncio.sleep(0.01)
        before = len(ended)
        await ask("calm", "a")
        between = len(ended) - before
        await asyncio.gather(*flood)
    await ModelReplica.__del__(replica)
    assert between <= 10
