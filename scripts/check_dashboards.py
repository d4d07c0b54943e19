"""Shows which panels of the Grafana dashboards find data in a real Prometheus under load.

Command: `python -m scripts.check_dashboards`. Starts a service with keys that count in a Redis: an
echo model, a small language model in vLLM and a small image model, on CPU. Prometheus scrapes it as
`components/monitoring/scrapes.yaml` has it done, while requests of two keys come, some beyond their
limits. Prints a line for each query with the number of its series; status 1 if one that must have
data has none. Needs prometheus and redis-server.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.prometheus_server import (
    Prometheus,
    Target,
    is_empty,
    panels,
    running_prometheus,
)
from tests.support.redis_server import RedisServer
from tests.support.tiny_images import create_pipeline
from truthgpt_serve.access.key_edit import add_key

ROOT = Path(__file__).resolve().parents[1]
BOARDS = ROOT / "k8s" / "components" / "monitoring" / "dashboards"
TEXT, IMAGES, ECHO = "tiny", "shapes", "echo"
SMALL: dict[str, Any] = {"cpus": 0.1, "gpus": 0}
NO_DATA = {
    ("service", "Failed health checks"): "none failed",
    ("cluster", "GPU"): "there is no GPU",
    ("cluster", "GPU memory"): "there is no GPU",
    ("tenant", "Audio"): "no model reads or makes audio",
}
"""Panels that have no data here, and why."""


def applications(folder: Path, auth: dict[str, Any], port: int) -> list[dict[str, Any]]:
    """Returns the entries of the Serve file."""
    engine = {
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": "64M",
    }
    text = {
        "model": {"name_or_path": str(make_tiny_llama(folder / "llama"))},
        "hardware": {"cpus": 1, "gpus": 0},
        "model_optim": {"dtype": "float32"},
        "serving": {"engine": engine},
    }
    create_pipeline("sdxl").save_pretrained(folder / "image")
    images = {
        "task": "image-generation",
        "model": {"name_or_path": str(folder / "image")},
        "hardware": {"cpus": 1, "gpus": 0},
        "serving": {"engine": {"default_steps": 2, "default_size": "64x64"}},
    }
    echo = {
        "model": {"family": "echo"},
        "hardware": SMALL,
        "serving": {
            "max_ongoing_requests": 2,
            "max_queued_requests": 2,
            "autoscaling": {"min_replicas": 1, "max_replicas": 2},
            "engine": {"token_interval_s": 0.02},
        },
    }
    models: dict[str, dict[str, Any]] = {TEXT: text, IMAGES: images, ECHO: echo}
    return [
        *(model_application(name, {**each, "auth": auth}) for name, each in models.items()),
        router_application(port, auth=auth),
    ]


def send(url: str, keys: dict[str, str], stop: threading.Event) -> None:
    """Sends requests of all kinds, with a pause between the rounds."""
    with httpx.Client(base_url=url, timeout=120) as client:
        while not stop.is_set():
            for key in keys.values():
                headers = {"authorization": f"Bearer {key}"}
                for model in (TEXT, ECHO):
                    body = {"model": model, "prompt": "one two three " * 40, "max_tokens": 8}
                    for stream in (False, True):
                        client.post(
                            "/v1/completions", json={**body, "stream": stream}, headers=headers
                        )
                picture = {"model": IMAGES, "prompt": "a circle", "n": 1}
                client.post("/v1/images/generations", json=picture, headers=headers)
                client.post("/v1/completions", json={"model": ECHO}, headers=headers)  # 400


def check(server: Prometheus) -> list[str]:
    """Prints what each query finds; returns those that find nothing and should."""
    missing = []
    for file in sorted(BOARDS.glob("*.json")):
        for title, legend, expression in panels(json.loads(file.read_text())):
            series = server.query(expression)
            empty = is_empty(series)
            reason = NO_DATA.get((file.stem, title), "")
            print(f"{file.stem:9} {title:40} {legend:34} {len(series):4} {reason}")
            if empty and not reason:
                missing.append(f"{file.stem}: {title}: {legend}")
    return missing


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = RedisServer(folder)
        redis.start()
        stack.callback(redis.kill)
        file = folder / "keys.yaml"
        limits = {
            "requests_per_minute": 40,
            "tokens_per_minute": 10**6,
            "image_megapixel_steps_per_minute": 10**6,
        }
        keys = {name: add_key(file, {"name": name, **limits}) for name in ("team-a", "team-b")}
        auth = {"keys_file": str(file), "quota_store": redis.url, "public_routes": ["/metrics"]}
        cluster = stack.enter_context(LocalCluster(ROOT / "configs" / "ray.env"))
        cluster.deploy(applications(folder, auth, cluster.port))
        cluster.wait_until_ready(timeout_s=600)
        labels = {"namespace": "here", "ray_io_cluster": "one"}
        targets = [
            Target("here/truthgpt-ray", f"{cluster.url}/metrics", labels),
            *(
                Target(
                    "here/truthgpt-engines",
                    f"{cluster.url}/models/{name}/metrics",
                    {**labels, "application": name},
                )
                for name in (TEXT, IMAGES, ECHO)
            ),
        ]
        server = stack.enter_context(running_prometheus(folder, targets))
        stop = threading.Event()
        clients = [threading.Thread(target=send, args=(cluster.url, keys, stop)) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(options.seconds)
        missing = check(server)
        stop.set()
        for client in clients:
            client.join()
        print("targets:", server.targets())
    if missing:
        sys.exit("no data: " + "; ".join(missing))


if __name__ == "__main__":
    main()
