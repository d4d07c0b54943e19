"""Whether `truthgpt bench` and `vllm bench serve` report the same of one server under one load.

Both measure a running service in turns, with the same prompts; the order changes from pair to pair.
What is printed and written are the medians of the pairs' ratios, ours / vLLM's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bench_client import paced_server
from truthgpt_serve.bench.compare import compare, ordered_sides
from truthgpt_serve.bench.prompts import WORDS
from truthgpt_serve.bench.result import OWN, read_results

RESULTS = Path(__file__).parent / "results" / "bench_agreement.json"
BIN = Path(sys.executable).parent
TIMEOUT_S = 600
# `vllm bench serve` itself: the command `vllm` of the distribution for CPUs does not start, for it
# asks for the version of a distribution of another name.
_VLLM = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
_OPTIONS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_BACKENDS = {"chat": "openai-chat", "completions": "openai"}


def commands(options: argparse.Namespace, dataset: Path, out: Path) -> list[list[str]]:
    """Returns our command and vLLM's, for the same load."""
    num, clients, length = (str(n) for n in (options.requests, options.clients, options.tokens))
    ours = [
        str(BIN / "truthgpt"), "bench", "--url", options.url, "--model", options.model,
        "--endpoint", options.endpoint, "--dataset", str(dataset), "--requests", num,
        "--concurrency", clients, "--output-len", length, "--ignore-eos", "--extra-body",
        '{"temperature": 0}', "-o", str(out), "--percentiles", "90,99",
    ]  # fmt: skip
    theirs = [
        sys.executable, "-c", _VLLM, "--base-url", options.url, "--model", options.model,
        "--tokenizer", options.tokenizer, "--backend", _BACKENDS[options.endpoint], "--endpoint",
        _OPTIONS[options.endpoint], "--dataset-name", "custom", "--dataset-path", str(dataset),
        "--custom-output-len", length, "--num-prompts", num, "--max-concurrency", clients,
        "--ignore-eos", "--temperature", "0", "--skip-chat-template", "--disable-shuffle",
        "--disable-tqdm", "--num-warmups", "1", "--save-result", "--result-filename", str(out),
        "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90,99",
    ]  # fmt: skip
    return [ours, theirs]


def measure(command: list[str], out: Path) -> dict[str, Any]:
    """Runs a command and returns the result that it wrote."""
    out.unlink(missing_ok=True)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return read_results(out)[0]


def main() -> None:
    """Measures, prints the ratios and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="story")
    parser.add_argument("--tokenizer", default="models/story")
    parser.add_argument("--endpoint", choices=list(_OPTIONS), default="chat")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument(
        "--paced",
        action="store_true",
        help="measure a server that streams at a fixed pace, which a busy machine disturbs less",
    )
    parser.add_argument("--first-ms", type=float, default=100.0, help="with --paced: its TTFT")
    parser.add_argument("--interval-ms", type=float, default=10.0, help="with --paced: its ITL")
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    results = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if options.paced:
            options.url = stack.enter_context(
                paced_server(options.tokens, options.interval_ms / 1000, options.first_ms / 1000)
            )
        dataset, out = Path(folder) / "prompts.jsonl", Path(folder) / "result.json"
        for pair in range(options.pairs):
            rng = random.Random(pair)
            rows = [{"prompt": " ".join(rng.choices(WORDS, k=24))} for _ in range(options.requests)]
            dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
            both = commands(options, dataset, out)
            for side in ordered_sides(pair, 2):
                result = measure(both[side], out)
                result[OWN] = {"load": f"{options.clients} at once", "side": side, "pair": pair}
                results.append(result)
    ratios = [ratio.to_json() for ratio in compare(results)]
    for ratio in ratios:
        print(json.dumps({name: ratio[name] for name in ("figure", "ratio", "low", "high")}))
    shown = {name: value for name, value in vars(options).items() if name != "url"}
    found = {"options": shown, "ratios": ratios}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
