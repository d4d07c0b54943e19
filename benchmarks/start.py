"""From the start command to the first token: `make serve` against vLLM's own server.

Command: `python -m benchmarks.start`. All serve the shipped language model with the engine
arguments of its file; `make serve` has the image model, an echo model and the router beside it.
vLLM runs once as it starts by itself, and once with the executor and the threads that the product
chooses on CPU, which is a process less. They take turns, once without being counted, so that files
are in the page cache. Needs the shipped ports. Writes `benchmarks/results/start.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml

from benchmarks.sides import CPU_EXECUTOR, ENGINE_ENV, ROOT, engine_options
from truthgpt_serve.cluster.ports import busy_ports, free_port
from truthgpt_serve.cluster.processes import create_run_environment, create_run_id, end_run

MODEL = "story"
PROMPT = {"model": MODEL, "prompt": "One day", "max_tokens": 4, "stream": True}
START_TIMEOUT_S = 180.0
PORT = 8000


def own_server(*more: str, env: Mapping[str, str] | None = None) -> float:
    """Returns the seconds that vLLM's own server takes with what configs/models/story.yaml says."""
    port = free_port()
    cfg: dict[str, Any] = yaml.safe_load((ROOT / f"configs/models/{MODEL}.yaml").read_text())
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port),
        "--model", cfg["model"]["name_or_path"], "--served-model-name", MODEL,
        "--dtype", cfg["model_optim"]["dtype"], "--enable-lora", "--lora-modules",
        *(f"{adapter['name']}={adapter['path']}" for adapter in cfg["serving"]["adapters"]),
        *engine_options(cfg["serving"]["engine"]), *more,
    ]  # fmt: skip
    return seconds_to_first_token(command, port, {"VLLM_CPU_KVCACHE_SPACE": "1", **(env or {})})


def product() -> float:
    """Returns the seconds that `make serve` takes."""
    return seconds_to_first_token(["make", "serve"], PORT, {}, stop=["make", "stop"])


def seconds_to_first_token(
    command: list[str], port: int, env: Mapping[str, str], *, stop: list[str] | None = None
) -> float:
    """Runs a server until its first token; ends what it started, first by the command `stop`."""
    if busy_ports("127.0.0.1", [port]):
        raise SystemExit(f"port {port} is taken: end what listens there")
    run_id = create_run_id()
    environment = {**os.environ, **env, "HF_HUB_OFFLINE": "1", **create_run_environment(run_id)}
    with tempfile.TemporaryFile() as log:
        started_s = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while not _has_token(port):
                if process.poll() is not None or time.monotonic() - started_s > START_TIMEOUT_S:
                    log.seek(0)
                    text = log.read().decode(errors="replace")
                    raise SystemExit(f"{' '.join(command)} gave no token:\n{text[-3000:]}")
                time.sleep(0.1)
            return time.monotonic() - started_s
        finally:
            if stop is not None:
                subprocess.run(stop, cwd=ROOT, stdout=subprocess.DEVNULL, check=False, timeout=90)
            end_run(run_id, timeout_s=30)
            process.wait(timeout=30)


def _has_token(port: int) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(PROMPT).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return bool(answer.readline().startswith(b"data:"))
    except (OSError, HTTPException):
        return False


def main() -> None:
    """Alternates between the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    sides = {
        "vllm": own_server,
        "vllm, the product's executor": lambda: own_server(
            "--distributed-executor-backend", CPU_EXECUTOR, env=ENGINE_ENV
        ),
        "make serve": product,
    }
    rounds = []
    for number in range(options.rounds + 1):
        found = {name: round(measure(), 1) for name, measure in sides.items()}
        print(found, "" if number else "(not counted)", flush=True)
        rounds += [found] if number else []
    report = {
        "seconds": {name: statistics.median(found[name] for found in rounds) for name in sides},
        "make serve later than": {
            name: round(statistics.median(found["make serve"] - found[name] for found in rounds), 1)
            for name in sides
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "start.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
