"""What binding answers to a schema costs, in tokens a second: `python -m benchmarks.bound`.

Serves the shipped story model through transformers and through vLLM, and has 8 clients ask for free
answers and for bound ones in turns. With `--against FOLDER`, a checkout with an environment of its
own in `.venv`, free answers of both checkouts are compared instead. Prints and writes the medians,
and the medians of the pairs' ratios, by the clock and by the services' CPU time: 1 is as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.against import Tree, serving, take_turns
from benchmarks.load import cpu_seconds
from benchmarks.sides import ROOT

RESULTS = Path(__file__).parent / "results" / "bound.json"
STORY = ROOT / "models" / "story"
NUM_CLIENTS, NUM_TOKENS, REST_S = 8, 96, 2.0
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["story", "poem"]},
        "words": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]{1,12}$"},
            "minItems": 400,
        },
    },
    "required": ["kind", "words"],
    "additionalProperties": False,
}
"""An answer takes more tokens than it may have: a bound one has as many as a free one."""
BOUND = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
FREE: dict[str, Any] = {
    "model": "story",
    "messages": [{"role": "user", "content": "Tell me a story about Mia and a red boat."}],
    "max_tokens": NUM_TOKENS,
    "temperature": 1.0,
    "ignore_eos": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "transformers": {"model": {"family": "hf-transformers"}},
    "vllm": {
        "model": {"family": "vllm"},
        "serving": {"engine": {"max_num_seqs": 16, "enforce_eager": True}},
    },
}
PROGRAM = """
from contextlib import contextmanager
from types import SimpleNamespace
from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT
@contextmanager
def serve():
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        model = model_application("story", {config})
        cluster.deploy([model, router_application(cluster.port)])
        cluster.wait_until_ready()
        yield SimpleNamespace(url=cluster.url, run_id=cluster.run_id)
side = serve()
"""


def program(family: str) -> str:
    """Returns what serves the story model through a family, in any checkout."""
    config: dict[str, Any] = {
        "task": "text-generation",
        "model_optim": {"dtype": "float32"},
        "hardware": {"cpus": 1},
        **MODELS[family],
    }
    config["model"] = {**config["model"], "name_or_path": str(STORY)}
    return PROGRAM.replace("{config}", repr(config))


def rate(side: tuple[str, str], body: dict[str, Any], duration_s: float) -> tuple[float, float]:
    """Returns the tokens of clients that each ask again at once: a second, and a second of CPU."""
    url, run_id = side
    time.sleep(REST_S)  # vLLM's engine spins for a second after its last request
    used_s, started_s = cpu_seconds(run_id), time.monotonic()
    tokens = asyncio.run(_ask(url, body, duration_s))
    elapsed_s = time.monotonic() - started_s
    return tokens / elapsed_s, tokens / (cpu_seconds(run_id) - used_s)


async def _ask(url: str, body: dict[str, Any], duration_s: float) -> int:
    tokens, started_s = 0, time.monotonic()

    async def ask(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while time.monotonic() < started_s + duration_s:
            answer = await http.post(f"{url}/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise SystemExit(f"{url}: {answer.status_code} {answer.text[:500]}")
            tokens += answer.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(timeout=120) as http:
        await asyncio.gather(*(ask(http) for _ in range(NUM_CLIENTS)))
    return tokens


def compare(sides: list[Callable[[], tuple[float, float]]], pairs: int) -> dict[str, float]:
    """Returns the medians of two sides, and that of their pairs' ratios."""
    take_turns(sides, 1)  # connections and caches warm
    found = take_turns(sides, pairs)
    ratios = [one[0] / other[0] for one, other in found]
    return {
        "tokens_per_s": round(statistics.median(one[0] for one, _ in found), 1),
        "other_tokens_per_s": round(statistics.median(other[0] for _, other in found), 1),
        "ratio": round(statistics.median(ratios), 3),
        "lowest_ratio": round(min(ratios), 3),
        "highest_ratio": round(max(ratios), 3),
        "cpu_ratio": round(statistics.median(one[1] / other[1] for one, other in found), 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, help="an earlier checkout")
    parser.add_argument("--family", choices=MODELS, action="append")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    options = parser.parse_args()
    trees = [Tree(ROOT, sys.executable)]
    if options.against is not None:
        folder = options.against.resolve()
        trees.append(Tree(folder, str(folder / ".venv" / "bin" / "python")))
    what = "bound to free" if options.against is None else "this to an earlier checkout"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family in options.family or MODELS:
        with ExitStack() as stack:
            sides = [stack.enter_context(serving(tree, program(family))) for tree in trees]
            bodies = [FREE, FREE]
            if options.against is None:
                sides, bodies = sides * 2, [{**FREE, "response_format": BOUND}, FREE]
            turns: list[Callable[[], tuple[float, float]]] = [
                partial(rate, side, body, options.seconds)
                for side, body in zip(sides, bodies, strict=True)
            ]
            found = compare(turns, options.pairs)
        results.setdefault(what, {})[family] = {**found, "pairs": options.pairs}
        print(f"{family}, {what}: {json.dumps(found)}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
