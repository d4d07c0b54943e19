"""A model that is deployed to a busy service answers as soon as Serve says that it runs.

The proxy is replaced at that moment, and the one before answers once more on each connection that
the routers keep: it does not know the model.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from tests.serve.bare_cluster import install

NUM_CLIENTS = 24
NUM_ROUNDS = 3
WAIT_S = 180


def ask(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "a", "max_tokens": 4}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30)


def test_a_new_model_answers_at_once_through_routers_that_are_in_use(bare: LocalCluster) -> None:
    def model(name: str) -> dict[str, object]:
        small = {"cpus": 0.1, "gpus": 0}
        slow = {"engine": {"token_interval_s": 0.05}}  # so that requests run beside each other
        return model_application(
            name, {"model": {"family": "echo"}, "hardware": small, "serving": slow}
        )

    install(bare, [model("first")])
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        applications = [model("first"), router_application(bare.port)]
        for number in range(NUM_ROUNDS):
            busy = clients.map(lambda _: ask(bare.url, "first"), range(NUM_CLIENTS))
            assert {answer.status_code for answer in busy} == {200}
            name = f"new-{number}"
            applications.append(model(name))
            bare.deploy(applications)
            deadline = time.monotonic() + WAIT_S
            while bare.statuses().get(name) != "RUNNING":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            names = [name, "first"] * (NUM_CLIENTS // 2)
            answers = list(clients.map(lambda name: ask(bare.url, name), names))
            wrong = [answer.text for answer in answers if answer.status_code != 200]
            assert not wrong, wrong
