"""From the start command to the first token: `make serve` against vLLM's own server.

Command: `python -m benchmarks.start`. Both serve the shipped language model with the same engine
arguments; `make serve` has the image model, an echo model and the router beside it. They take
turns, once without being counted, so that files are in the page cache. Needs the shipped ports.
Writes `benchmarks/results/start.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.sides import ROOT
from truthgpt_serve.local_cluster import free_port
from truthgpt_serve.processes import create_run_environment, create_run_id, end_run

MODEL = "story"
PROMPT = {"model": MODEL, "prompt": "One day", "max_tokens": 4, "stream": True}
START_TIMEOUT_S = 180.0
PORT = 8000


def own_server(port: int) -> list[str]:
    """Returns the command of vLLM's own server with what configs/models/story.yaml says."""
    cfg: dict[str, Any] = yaml.safe_load((ROOT / f"configs/models/{MODEL}.yaml").read_text())
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port),
        "--model", cfg["model"]["name_or_path"], "--served-model-name", MODEL,
        "--dtype", cfg["model_optim"]["dtype"], "--enable-lora", "--lora-modules",
        *(f"{adapter['name']}={adapter['path']}" for adapter in cfg["serving"]["adapters"]),
    ]  # fmt: skip
    for name, value in cfg["serving"]["engine"].items():
        option = f"--{name.replace('_', '-')}"
        command += [option] if value is True else [option, str(value)]
    return command


def seconds_to_first_token(command: list[str], port: int, env: Mapping[str, str]) -> float:
    """Runs a server until its first token; ends it with all it started."""
    run_id = create_run_id()
    environment = {**os.environ, **env, "HF_HUB_OFFLINE": "1", **create_run_environment(run_id)}
    started_s = time.monotonic()
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not _has_token(port):
            if process.poll() is not None or time.monotonic() - started_s > START_TIMEOUT_S:
                raise SystemExit(f"{' '.join(command)} gave no token")
            time.sleep(0.1)
        return time.monotonic() - started_s
    finally:
        if command[0] == "make":  # its service has a run id of its own
            subprocess.run(["make", "stop"], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
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
    except OSError:
        return False


def main() -> None:
    """Alternates between the two servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs + 1):
        port = free_port()
        theirs = seconds_to_first_token(own_server(port), port, {"VLLM_CPU_KVCACHE_SPACE": "1"})
        ours = seconds_to_first_token(["make", "serve"], PORT, {})
        print(f"{theirs:.1f} {ours:.1f}" + ("" if number else " (not counted)"), flush=True)
        pairs += [(theirs, ours)] if number else []
    report = {
        "vllm_s": round(statistics.median(theirs for theirs, _ in pairs), 1),
        "make_serve_s": round(statistics.median(ours for _, ours in pairs), 1),
        "later_s": round(statistics.median(ours - theirs for theirs, ours in pairs), 1),
        "pairs_s": [[round(theirs, 1), round(ours, 1)] for theirs, ours in pairs],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "start.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
