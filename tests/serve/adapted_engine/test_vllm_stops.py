"""When the engine of a vLLM model stops: as its client leaves, and for good as it dies.

The last module of this folder, by its name.
"""

from __future__ import annotations

import time

import httpx
import pytest

from tests.serve.adapted_engine.conftest import PROMPTS
from tests.serve.vllm_process import Server, alive, descendants, wait_for

pytestmark = pytest.mark.timeout(600)


def test_engine_stops_when_the_generic_client_leaves(server: Server) -> None:
    inputs = {"text": PROMPTS[0], "max_new_tokens": 900, "ignore_eos": True}
    body = {"model": "tiny", "inputs": inputs, "stream": True}
    for _ in range(3):
        with httpx.stream("POST", f"{server.url}/v1/infer", json=body, timeout=60) as answer:
            next(answer.iter_bytes())
    wait_for(lambda: running_requests(server) == 0, 5)
    tokens = generation_tokens(server)
    time.sleep(0.5)
    assert generation_tokens(server) == tokens


def metric(server: Server, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", follow_redirects=True).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def running_requests(server: Server) -> float:
    return metric(server, "vllm:num_requests_running")


def generation_tokens(server: Server) -> float:
    return metric(server, "vllm:generation_tokens_total")


def test_health_fails_after_the_engine_dies(server: Server) -> None:
    """Breaks the folder's engine: no test may come after it."""
    tree = descendants(server.process.pid)
    titles = {process: " ".join(process.cmdline()) for process in tree}
    (core,) = [process for process, title in titles.items() if "EngineCore" in title]
    core.kill()
    wait_for(lambda: httpx.get(f"{server.url}/check").status_code == 500, 10)
    assert "EngineDeadError" in httpx.get(f"{server.url}/check").text
    # The resource tracker and the compiler of grammars belong to the server's own process, which
    # lives on.
    own = ("tracker", "grammar.worker")
    engine = [p for p, title in titles.items() if not any(word in title for word in own)]
    assert not alive(engine, within_s=10)
