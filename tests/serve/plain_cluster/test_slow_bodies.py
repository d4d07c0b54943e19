"""Clients that hardly send their bodies do not keep a model from the others, on any way to it."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import Counter
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.local_cluster import LocalCluster, model_application
from tests.serve.bare_cluster import install
from truthgpt_serve.body_limits import STALL_S

PLACES, QUEUED = 4, 8
NUM_SLOW = 10
"""Fewer than the model holds, and more than it works on."""
LENGTH = 15_000_000
BEGIN = b'{"model": "echo", "prompt": "'
SENT = {"more than the proxy reads": 150_000, "more than is gathered": 1_500_000}
PATHS = ("/v1/completions", "/models/echo/v1/completions")
ATTACK_S = 12.0
LIMIT_S = 15.0
"""For one answer, on a busy machine; places that are held would give none before `STALL_S`."""


@pytest.fixture(scope="module")
def cluster(bare: LocalCluster) -> LocalCluster:
    model = {
        "model": {"family": "echo"},
        "hardware": {"cpus": 0.1, "gpus": 0},
        "serving": {"max_ongoing_requests": PLACES, "max_queued_requests": QUEUED},
    }
    install(bare, [model_application("echo", model)])
    return bare


class Attack:
    """Clients that send a part of a body and then a byte now and then, and come again.

    Args:
        url: The service.
        path: What they ask for.
        num_bytes: The part.
    """

    def __init__(self, url: str, path: str, num_bytes: int) -> None:
        self._address = urlsplit(url).hostname, urlsplit(url).port
        self._path = path
        self._begin = BEGIN + b"a" * num_bytes
        self._over = threading.Event()
        self.statuses: Counter[int] = Counter()

    def run(self) -> None:
        with contextlib.ExitStack() as threads:
            for _ in range(NUM_SLOW):
                thread = threading.Thread(target=self._keep_on)
                thread.start()
                threads.callback(thread.join, 30)
            self._over.wait(ATTACK_S)

    def stop(self) -> None:
        self._over.set()

    def _keep_on(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                self._send()

    def _send(self) -> None:
        with socket.create_connection(self._address, timeout=LIMIT_S) as client:
            head = f"POST {self._path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}content-length: {LENGTH}\r\n\r\n".encode() + self._begin)
            with selectors.DefaultSelector() as answered:
                answered.register(client, selectors.EVENT_READ)
                while not self._over.is_set():
                    if answered.select(0.5):
                        if answer := client.recv(100):
                            self.statuses[int(answer[9:12])] += 1
                        return
                    client.sendall(b"a")


@pytest.mark.parametrize("num_bytes", SENT.values(), ids=list(SENT))
@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_trickle_keep_no_place(
    cluster: LocalCluster, path: str, num_bytes: int
) -> None:
    attack = Attack(cluster.url, path, num_bytes)
    runner = threading.Thread(target=attack.run)
    runner.start()
    try:
        time.sleep(2)
        for _ in range(3):
            for own in PATHS:
                answer = httpx.post(
                    f"{cluster.url}{own}",
                    json={"model": "echo", "prompt": "a", "max_tokens": 1},
                    timeout=LIMIT_S,
                )
                assert answer.status_code == 200, answer.text
    finally:
        attack.stop()
        runner.join(60)
    assert LIMIT_S < STALL_S
    assert set(attack.statuses) <= {408, 429}
