"""Many more requests than a model holds: what it still answers, and how soon it refuses the others.

Command: `python -m benchmarks.overload --connections 8000`. wrk sends unary requests to an echo
model, from so many clients that nothing is refused (the peak), and from `--connections`, which ask
again as soon as they are refused, or wait as `Retry-After` says (`--patient`). Both take turns: the
peak counts as the mean of the one before and the one after. `--way` has them go through the router
or to the model's own address. What comes while connections are opened does not count. Beside that
load one client after another asks once, and the time of its answer is measured. Prints goodput
against the peak, every status, and the memory of HAProxy; writes
`benchmarks/results/overload.json`. Needs wrk, and open files for the connections (`ulimit -n`).

With `--retries` clients of a slow model wait as `Retry-After` says, and it is measured when they
are let in (`overload_retries`): each client asks once, then each goes on for `--seconds`.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import overload_retries
from benchmarks.idle import pss_bytes
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT
from truthgpt_serve.cluster.processes import find_run

PATHS = {
    "direct": "/v1/completions",
    "router": "/v1/completions",
    "model": "/models/echo/v1/completions",
}
"""By the way to the model."""
BODY = json.dumps({"model": "echo", "prompt": "one two three four", "max_tokens": 4})
PROBE_INTERVAL_S = 0.02
OPENING_S = 4
"""Seconds at the start that do not count: 8,000 connections are opened in two."""
SCRIPT = """
wrk.method = "POST"
wrk.body = [[%(body)s]]
wrk.headers["content-type"] = "application/json"
wrk.headers["x-truthgpt-way"] = %(way)s
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) counts = {}; seconds = {}; waits = {}; first = 1; last = 0 end
function delay()
  if first > last then return 0 end
  local wait = waits[first]
  waits[first] = nil
  first = first + 1
  return wait
end
local function count(status)
  counts[status] = (counts[status] or 0) + 1
  if status == 200 then
    local now = os.time()
    seconds[now] = (seconds[now] or 0) + 1
  end
end
local function count_and_wait(status, headers)
  count(status)
  local told = status == 429 and headers["retry-after"] or 0
  last = last + 1
  waits[last] = 1000 * tonumber(told)
end
response = %(response)s
function done(summary)
  local all = {}
  for _, thread in ipairs(threads) do
    for status, n in pairs(thread:get("counts")) do all[status] = (all[status] or 0) + n end
  end
  io.write("counts")
  for status, n in pairs(all) do io.write(" ", status, "=", n) end
  local of_thread = threads[1]:get("seconds")
  for second, n in pairs(of_thread) do io.write(" at", second, "=", n) end
  local e = summary.errors
  io.write(" connect=", e.connect, " read=", e.read, " write=", e.write, " timeout=", e.timeout)
  io.write(" us=", summary.duration, "\\n")
end
"""


@dataclass(slots=True)
class Load:
    """What one run of wrk and the client beside it saw.

    Attributes:
        seconds: How long it took.
        counts: Answers by status, and wrk's errors by kind.
        good: Answers with status 200 of each second, in order.
        haproxy_bytes: HAProxy's memory (PSS) meanwhile.
        probes: Seconds of each answer to the client beside it, by status; 0 is none.
    """

    seconds: float
    counts: dict[str, int]
    good: list[int]
    haproxy_bytes: int
    probes: dict[int, list[float]] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Answers with status 200 a second, once all connections are open."""
        return statistics.mean(self.good[OPENING_S:-1])

    def refused_ms(self, quantile: float) -> float | None:
        """Returns in how many milliseconds this share of the refusals came."""
        times = sorted(self.probes.get(429, []))
        return round(times[int(quantile * (len(times) - 1))] * 1e3, 1) if times else None


def run_wrk(url: str, run_id: str, connections: int, options: argparse.Namespace) -> Load:
    """Sends requests for some seconds; a client beside it measures single answers."""
    values = {
        "body": BODY,
        "way": '"router"' if options.way == "router" else "nil",
        "response": "count_and_wait" if options.patient else "count",
    }
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % values)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{options.seconds:g}s", "--timeout", "30s"]
        process = subprocess.Popen(
            [*command, "-s", script.name, f"{url}{PATHS[options.way]}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        probes: dict[int, list[float]] = {}
        stop = threading.Event()
        prober = threading.Thread(target=_probe, args=(url, PATHS[options.way], probes, stop))
        time.sleep(min(3.0, options.seconds / 3))  # all connections are open by then
        prober.start()
        time.sleep(1.0)
        memory = haproxy_bytes(run_id)
        output, _ = process.communicate(timeout=options.seconds + 60)
        stop.set()
        prober.join(60)
    line = next(line for line in output.splitlines() if line.startswith("counts"))
    counts = {name: int(n) for name, n in (word.split("=") for word in line.split()[1:])}
    seconds = sorted((name, counts.pop(name)) for name in [*counts] if name.startswith("at"))
    good = [number for _, number in seconds]
    return Load(counts.pop("us") / 1e6, counts, good, memory, probes)


def haproxy_bytes(run_id: str) -> int:
    """Returns the memory of the HAProxy processes of a run."""
    pids = [process.pid for process in find_run(run_id) if "/haproxy " in f"{process.command} "]
    return sum(pss_bytes(pid) for pid in pids)


def _probe(url: str, path: str, probes: dict[int, list[float]], stop: threading.Event) -> None:
    while not stop.wait(PROBE_INTERVAL_S):
        started_s = time.perf_counter()
        status = _ask(url, path)
        probes.setdefault(status, []).append(time.perf_counter() - started_s)


def _ask(url: str, path: str) -> int:
    """Asks once on a connection of its own; returns the status, or 0 without one."""
    host = urlsplit(url).netloc
    with closing(http.client.HTTPConnection(host, timeout=30)) as connection:
        try:
            connection.request("POST", path, BODY, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
        except OSError:
            return 0
        return answer.status


def measure_overload(url: str, run_id: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measures peak and overload in turn; returns medians and sums."""
    warm = argparse.Namespace(**{**vars(options), "seconds": 2.0})
    run_wrk(url, run_id, options.peak_connections, warm)
    peaks = [run_wrk(url, run_id, options.peak_connections, options)]
    loads = []
    for _ in range(options.pairs):
        loads.append(run_wrk(url, run_id, options.connections, options))
        peaks.append(run_wrk(url, run_id, options.peak_connections, options))
    counts: Counter[str] = Counter()
    probes: Counter[int] = Counter()
    for load in loads:
        counts.update(load.counts)
        probes.update({status: len(times) for status, times in load.probes.items()})
    around = [(a.goodput + b.goodput) / 2 for a, b in itertools.pairwise(peaks)]
    ratios = [load.goodput / peak for load, peak in zip(loads, around, strict=True)]
    return {
        "connections": options.connections,
        "patient": options.patient,
        "way": options.way,
        "peak_requests_per_s": round(statistics.median(peak.goodput for peak in peaks), 1),
        "goodput_ratio": round(statistics.median(ratios), 3),
        "goodput_ratios": [round(ratio, 3) for ratio in ratios],
        "refusals_per_s": round(counts["429"] / sum(load.seconds for load in loads), 1),
        "refused_ms_p50": [load.refused_ms(0.5) for load in loads],
        "refused_ms_p99": [load.refused_ms(0.99) for load in loads],
        "haproxy_mb": round(max(load.haproxy_bytes for load in loads) / 2**20),
        "counts": dict(counts),
        "probes": {str(status): number for status, number in sorted(probes.items())},
    }


def run_retries(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what refused clients are told against when they are let in."""
    slow = {
        "model": {"family": "echo"},
        "hardware": {"gpus": 0, "cpus": 0.1},
        "serving": overload_retries.SERVING,
    }
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        cluster.deploy(
            [model_application(overload_retries.MODEL, slow), router_application(cluster.port)]
        )
        cluster.wait_until_ready()
        time.sleep(2)
        lasting = (0.0, options.seconds)
        return [
            overload_retries.measure(cluster.url, seconds, router=options.way == "router")
            for seconds in lasting
        ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=8000)
    parser.add_argument("--peak-connections", type=int, default=128)
    parser.add_argument("--places", type=int, help="of the model, by default the family's")
    parser.add_argument("--queued", type=int, help="requests that wait for them, by default twice")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--patient", action="store_true", help="clients wait as told")
    parser.add_argument("--way", choices=PATHS, default="direct", help="to the model")
    parser.add_argument("--retries", action="store_true", help="measure Retry-After")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.retries:
        print(json.dumps(run_retries(options), indent=1))
        return
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: install the package `wrk`")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limits = {"max_ongoing_requests": options.places, "max_queued_requests": options.queued}
    echo = {"model": {"family": "echo"}, "hardware": {"gpus": 0, "cpus": 0.1}, "serving": limits}
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        cluster.deploy([model_application("echo", echo), router_application(cluster.port)])
        cluster.wait_until_ready()
        time.sleep(2)  # the routers' first news of what goes direct
        result = measure_overload(cluster.url, cluster.run_id, options)
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overload.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
