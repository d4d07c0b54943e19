"""What keys, quotas, usage, metrics and traces cost: the part `cost` of `benchmarks.keys`.

Each service is measured at the same time as one without keys, both with the same load: on a shared
machine the CPU time of a request changes by a third within a minute, and so it does for both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.load import cpu_by_kind
from benchmarks.local_cluster import LocalCluster

PATH = "/v1/completions"
BODY = {"model": "echo", "prompt": "one two three four", "max_tokens": 4}
STREAM = {**BODY, "model": "paced", "max_tokens": 64, "stream": True}
FORMS = {"stream": (STREAM, 32, 100), "whole": (BODY, 16, 0)}
"""What is sent by how many clients, and milliseconds at most between two requests of a client.

Streams in step share the turns of the replica's event loop: they cost a third less, on one side or
on the other. Clients that wait at random are in step on neither.
"""
WARM_S = 2.0
KINDS = {
    name: name
    for name in (
        "haproxy",
        *(f"ServeReplica:{name}" for name in ("echo", "paced", "slow", "router")),
    )
}
SCRIPT = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["content-type"] = "application/json"
wrk.headers["authorization"] = "Bearer %s"
function delay() return math.random(0, %d) end
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the requests of one run cost.

    Attributes:
        cpu_ms: CPU milliseconds for each request.
        by_kind: The same of each kind of the service's processes.
        per_s: Requests a second.
    """

    cpu_ms: float
    by_kind: dict[str, float]
    per_s: float


@dataclass(frozen=True, slots=True)
class Side:
    """A service, and whose requests it gets.

    Attributes:
        cluster: The service.
        key: The key of the requests.
    """

    cluster: LocalCluster
    key: str

    def run(self, seconds: float, form: str) -> Cost:
        """Sends requests of one of the forms, each client one after the other."""
        body, num_clients, most_ms = FORMS[form]
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(SCRIPT % (json.dumps(body), self.key, most_ms))
            script.flush()
            before = cpu_by_kind(self.cluster.run_id, KINDS)
            command = ["wrk", "-t1", f"-c{num_clients}", f"-d{seconds:g}s", "-s", script.name]
            done = subprocess.run(
                [*command, f"{self.cluster.url}{PATH}"],
                capture_output=True,
                text=True,
                check=True,
                timeout=seconds + 60,
            )
            after = cpu_by_kind(self.cluster.run_id, KINDS)
        if "Non-2xx" in done.stdout:
            raise SystemExit(done.stdout)
        number = int(done.stdout.split(" requests in ")[0].split()[-1])
        by_kind = {kind: 1e3 * (after[kind] - before[kind]) / number for kind in after}
        return Cost(sum(by_kind.values()), by_kind, number / seconds)


def measure_cost(
    sides: Mapping[str, Side], plain: Side, form: str, seconds: float, num_runs: int
) -> dict[str, Any]:
    """Compares services with one without keys by requests of one form.

    Args:
        sides: The services by name.
        plain: The one without keys.
        form: One of `FORMS`.
        seconds: Of one run.
        num_runs: Of each side, in turn.
    """
    for side in (*sides.values(), plain):
        side.run(WARM_S, form)
    found: dict[str, list[tuple[Cost, Cost]]] = {name: [] for name in sides}
    with ThreadPoolExecutor(2) as pool:
        for number in range(num_runs):
            for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
                pair = [pool.submit(each.run, seconds, form) for each in (side, plain)]
                found[name].append((pair[0].result(), pair[1].result()))
    return {name: compare(pairs) for name, pairs in found.items()}


def compare(pairs: list[tuple[Cost, Cost]]) -> dict[str, Any]:
    """Returns the medians of a side's costs and of the other's, and of their ratios."""
    ratios = sorted(cost.cpu_ms / other.cpu_ms for cost, other in pairs)
    quarter = len(ratios) // 4
    return {
        "cpu_ratio": round(statistics.median(ratios), 3),
        "cpu_ratio_quartiles": [round(ratios[quarter], 3), round(ratios[-1 - quarter], 3)],
        **{
            name: {
                "cpu_ms": round(statistics.median(cost.cpu_ms for cost in costs), 3),
                "per_s": round(statistics.median(cost.per_s for cost in costs), 1),
                "by_kind": {
                    kind: round(statistics.median(cost.by_kind[kind] for cost in costs), 3)
                    for kind in costs[0].by_kind
                },
            }
            for name, costs in zip(("ours", "none"), zip(*pairs, strict=True), strict=True)
        },
    }


@contextmanager
def spans_receiver() -> Iterator[str]:
    """Takes spans by OTLP over HTTP and keeps none; yields its address.

    Raises:
        SystemExit: None came.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _Receiver.num_bytes = 0
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
    if not _Receiver.num_bytes:
        raise SystemExit("no span was sent: what was measured was not traced")


class _Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    num_bytes = 0

    def do_POST(self) -> None:
        """Takes a batch of spans."""
        size = int(self.headers["content-length"])
        self.rfile.read(size)
        _Receiver.num_bytes += size
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Writes nothing."""
