"""Load on an HTTP server: wrk for throughput and latency, a raw socket client for the first byte.

wrk is written in C: at the rates measured here it takes a few percent of a core.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from truthgpt_serve.cluster.processes import find_run

_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = [==[%s]==]
function done(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"num_requests":%%d,"duration_us":%%d,"p50_us":%%d,"p99_us":%%d,"num_errors":%%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""

REST_S = 2.0
"""vLLM's engine processes spin for one second after their last request, on two cores out of two."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one side did in one interval."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    ttft_p50_ms: float
    server_cpu_ms_per_request: float
    client_cpu_share: float
    num_requests: int
    num_errors: int
    cpu_ms_by_kind: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, rounded."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: round(one, 3) for name, one in value.items()}
    return round(value, 3)


KINDS = {
    "engine": "VLLM::",
    "haproxy": "haproxy",
    "router": "ServeReplica:router",
    "replicas": "ServeReplica:",
}
"""Kinds of a service's processes, by what stands in their command lines; the first one counts."""
OTHERS = "others"


def cpu_seconds(run_id: str) -> float:
    """Returns the CPU time of a run's live processes and of the children they waited for."""
    return sum(cpu_by_kind(run_id).values())


def cpu_by_kind(run_id: str, kinds: Mapping[str, str] = KINDS) -> dict[str, float]:
    """Returns the same of each kind of processes, with `OTHERS`."""
    seconds = dict.fromkeys((*kinds, OTHERS), 0.0)
    for process in find_run(run_id):
        folder = Path(f"/proc/{process.pid}")
        try:
            words = (folder / "cmdline").read_text()
            used_s = _own_seconds(folder) + _children_seconds(folder)
        except OSError:
            continue
        kind = next((kind for kind, part in kinds.items() if part in words), OTHERS)
        seconds[kind] += used_s
    return seconds


def _own_seconds(folder: Path) -> float:
    """Returns the CPU time of a process's threads, as the scheduler counts it: without ticks."""
    used_ns = 0
    for task in (folder / "task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            used_ns += int((task / "schedstat").read_text().split()[0])
    return used_ns / 1e9


def _children_seconds(folder: Path) -> float:
    """Returns the CPU time of the children that a process has waited for."""
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")


def measure(
    url: str, body: dict[str, Any], *, num_clients: int, duration_s: float, run_id: str
) -> Measurement:
    """Loads a server with `num_clients` connections that each send the next request at once.

    Begins with a rest of `REST_S`, in which the side measured before comes to a stop.
    """
    time.sleep(REST_S)
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("wrk is missing: install the Debian package `wrk`")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_SCRIPT % json.dumps(body))
        script.flush()
        command = [
            wrk, "--threads", "1", "--connections", str(num_clients), "--timeout", "60s",
            "--duration", f"{duration_s:g}s", "--script", script.name, url,
        ]  # fmt: skip
        client_before = os.times()
        before = cpu_by_kind(run_id)
        started_s = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=duration_s + 120, check=True
        )
        elapsed_s = time.monotonic() - started_s
        after = cpu_by_kind(run_id)
        client_after = os.times()
    found = json.loads(done.stderr[done.stderr.index("{") :])
    client_s = sum(client_after[2:4]) - sum(client_before[2:4])
    num_requests = max(1, found["num_requests"])
    by_kind = {kind: (after[kind] - before[kind]) * 1000 / num_requests for kind in after}
    return Measurement(
        requests_per_s=num_requests / (found["duration_us"] / 1e6),
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        ttft_p50_ms=asyncio.run(time_to_first_byte(url, body, num_clients)),
        server_cpu_ms_per_request=sum(by_kind.values()),
        client_cpu_share=client_s / elapsed_s,
        num_requests=num_requests,
        num_errors=found["num_errors"],
        cpu_ms_by_kind=by_kind,
    )


class _FirstByte(asyncio.Protocol):
    """Sends one request after another; notes when the first byte of each answer's body came."""

    def __init__(self, request: bytes, samples_s: list[float], num_requests: int) -> None:
        self._request = request
        self._samples_s = samples_s
        self._left = num_requests
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._buffer = b""
        self._waiting = True
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._waiting:
            self._buffer += data
            if b"data:" not in self._buffer:
                return
            self._samples_s.append(time.perf_counter() - self._sent_s)
            self._waiting = False
        self._buffer = (self._buffer + data)[-16:]
        if self._buffer.endswith(b"0\r\n\r\n"):
            self._left -= 1
            if self._left:
                self._send()
            else:
                self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def time_to_first_byte(url: str, body: dict[str, Any], num_clients: int) -> float:
    """Returns the median milliseconds to the first event of a stream, over at least 20 requests.

    0.0 for a request that does not stream.
    """
    if not body.get("stream"):
        return 0.0
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    content = json.dumps(body).encode()
    request = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    ).encode() + content
    samples_s: list[float] = []
    num_each = max(2, 20 // num_clients)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(120):
        clients = [
            await loop.create_connection(
                lambda: _FirstByte(request, samples_s, num_each), host, port
            )
            for _ in range(num_clients)
        ]
        await asyncio.gather(*(client.done for _, client in clients))
    return statistics.median(samples_s) * 1000


@contextmanager
def idle_cpu(run_id: str, seconds: float) -> Iterator[list[float]]:
    """Measures the share of one core that a run uses without requests."""
    before_s = cpu_seconds(run_id)
    time.sleep(seconds)
    yield [(cpu_seconds(run_id) - before_s) / seconds]
