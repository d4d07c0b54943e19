"""Hostile requests against a service of its own: `python -m tests.fuzz.hostile --requests 10000`.

Starts a service that asks for keys, with a text, an image, a tensor and an echo model, and sends it
generated requests: the fuzzer's, ones for every route, and bytes that are hardly HTTP, with good
keys, wrong ones and none. Exits with 1 if one gets a status of 500 or above (501 aside, and 503
with `Retry-After`), waits for more than 5 s even alone, is let in without a key, or takes a process
away, or if a key or its hash stands in a log, in the store of usage or in a metric afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.local_cluster import LocalCluster
from tests.fuzz.client import Answer, send
from tests.fuzz.credentials import Keys, authorize
from tests.fuzz.every_route import any_route
from tests.fuzz.hostile_service import MODELS, applications, make_keys
from tests.fuzz.judge import faults
from tests.fuzz.leaks import find_in_files, traces_of
from tests.fuzz.malformed import malformed
from tests.fuzz.mutations import mutate
from tests.fuzz.requests import Request, build
from tests.fuzz.run import Fuzz
from truthgpt_serve.cluster.processes import Process, find_run

ROOT = Path(__file__).resolve().parents[2]
MAX_S = 5.0
"""How long any answer may take, and how long a request alone that was slow beside others."""
PATIENCE_S = 60.0
LOGS_S = 6.0
"""After which all that is counted and logged has been written."""
OPEN = ("/health", "/ready", "/v2/health", "/models/", "/-/")
"""Where the paths begin that ask for no key; of `/models/` only those that end like the others."""
OPEN_ENDS = ("/health", "/ready", "/live", "/-/routes")
PARTS = (
    "ServeReplica", "haproxy", "HAProxyManager", "ProxyActor", "ServeController", "UsageKeeper",
    "raylet", "gcs_server", "DashboardAgent", "RuntimeEnvAgent", "dashboard", "log_monitor",
)  # fmt: skip
"""Words in the commands of the service's processes."""


class Hostile(Fuzz):
    """One run against a service with keys.

    Args:
        url: The service.
        seed: Each request depends on it and on its index.
        models: Names of its models.
        keys: Its keys.

    Attributes:
        slow: Indices of the requests that took too long beside others.
    """

    def __init__(self, url: str, seed: int, models: Iterable[str], keys: Keys) -> None:
        super().__init__(url, seed, list(models))
        self.slow: list[int] = []
        self._keys = keys

    def generate(self, index: int) -> Request:
        """Returns the request of an index."""
        return self._generate(index)[0]

    def _generate(self, index: int) -> tuple[Request, bool]:
        rng = random.Random(f"hostile:{self._seed}:{index}")
        model, kind = rng.choice(self._models), rng.random()
        if kind < 0.25:
            request = malformed(rng, model)
        elif kind < 0.50:
            request = any_route(rng, model)
        else:
            request = build(rng, self._models)
        if request.raw is None and rng.random() < 0.8:
            mutate(rng, request)
        return request, authorize(rng, request, self._keys)

    async def send(self, request: Request) -> Answer:
        """Sends a request."""
        return await send(self.host, self.port, request, PATIENCE_S)

    def judge(self, index: int, request: Request, answer: Answer) -> list[str]:
        """Returns what is wrong with an answer, its time aside."""
        if answer.seconds > MAX_S:
            self.slow.append(index)
        answer.seconds = 0.0
        found = faults(request, answer)
        if answer.status == 501 or (answer.status == 503 and answer.retry_after):
            found = [fault for fault in found if not fault.startswith("status ")]
        path = request.path.partition("?")[0]
        is_open = path.startswith(OPEN) and path.rstrip("/").endswith(OPEN_ENDS)
        if 200 <= answer.status < 300 and not is_open and not self._generate(index)[1]:
            found.append(f"let in without a good key: {answer.body[:80]!r}")
        return found

    async def send_slow_again(self) -> int:
        """Sends what was slow again, alone; returns how many are fast now."""
        for index in self.slow:
            request = self.generate(index)
            if (seconds := (await self.send(request)).seconds) > MAX_S:
                self.findings.append(
                    f"#{index} {request.method} {request.path[:60]} "
                    f"[{'+'.join(request.mutations)}]: took {seconds:.1f} s alone"
                )
        return len(self.slow) - sum("s alone" in finding for finding in self.findings)


def find_leaks(cluster: LocalCluster, keys: Keys, folder: Path) -> list[str]:
    """Returns where a key or its hash stands: in logs, the store of usage, or metrics."""
    files = [path for path in cluster.folder.rglob("*") if path.is_file()]
    files += folder.glob("*.usage.sqlite*")
    found = find_in_files(files, keys.secrets())
    headers = {"authorization": f"Bearer {keys.good['all']}"}
    pages = [f"{cluster.url}/metrics", f"http://127.0.0.1:{cluster.metrics_port}/metrics"]
    pages += [f"{cluster.url}/models/{name}/metrics" for name in MODELS]
    for page in pages:
        answer = httpx.get(page, headers=headers, timeout=PATIENCE_S, follow_redirects=True)
        if answer.status_code != 200:
            found.append(f"{page} answers {answer.status_code}")
        traces = traces_of(keys.secrets()).items()
        found += [f"{name} stands in {page}" for name, trace in traces if trace in answer.content]
    return found


@contextmanager
def open_service() -> Iterator[tuple[LocalCluster, Keys, Path]]:
    """Starts the service; yields it with its keys and the folder of their file."""
    with tempfile.TemporaryDirectory(prefix="hostile") as name:
        folder = Path(name)
        keys = make_keys(folder / "keys.yaml")
        with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
            cluster.deploy(applications(folder, cluster.port))
            cluster.wait_until_ready(timeout_s=600)
            time.sleep(2)  # the routers' first news of what goes direct
            yield cluster, keys, folder


def lasting(run_id: str) -> list[Process]:
    """Returns the processes of the service; workers that Ray keeps for later are not among them."""
    return [
        process
        for process in find_run(run_id)
        if any(word in process.command for word in PARTS) and "IDLE" not in process.command
    ]


def main() -> int:
    """Runs the program; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", type=int, help="index of one request to send")
    options = parser.parse_args()
    with open_service() as (cluster, keys, folder):
        fuzz = Hostile(cluster.url, options.seed, MODELS, keys)
        if options.only is not None:
            answer = asyncio.run(fuzz.send(request := fuzz.generate(options.only)))
            print(request, answer)
            return 0
        before = lasting(cluster.run_id)
        asyncio.run(fuzz.run(options.requests, options.clients, None))
        fast = asyncio.run(fuzz.send_slow_again())
        fuzz.compare(before, lasting(cluster.run_id), PARTS)
        time.sleep(LOGS_S)
        fuzz.findings += find_leaks(cluster, keys, folder)
    print(fuzz.report())
    print(f"{options.requests} requests of seed {options.seed}; {len(before)} processes before")
    print("slow beside others:", *fuzz.slow)
    print(f"{fast} took more than {MAX_S:g} s beside others, and less alone")
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
