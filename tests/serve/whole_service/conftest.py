"""The cluster that the modules of this folder share: every kind of model on the real stack.

Knows which models there are; what they must answer is in the tests.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from deployments.vllm.tiny_model import make_tiny_adapter, make_tiny_llama

SERVE = Path(__file__).resolve().parents[1]
RAY_ENV = SERVE.parents[1] / "configs" / "ray.env"
START_TIMEOUT_S = 400
REQUEST_TIMEOUT_S = 60
MAX_MODEL_LEN = 512
ALIASES = {"org/Tiny-1B:latest": "tiny", "gpt-4o-mini": "echo"}
"""Other names of models."""


@dataclass(frozen=True)
class Service:
    """The running service.

    Attributes:
        cluster: Its cluster.
        openai: OpenAI's own client.
        http: Plain HTTP, for what that client cannot send.
        weights: Folder of the language model's weights.
        adapter: Folder of its adapter.
        applications: The entries of the Serve file.
    """

    cluster: LocalCluster
    openai: openai.OpenAI
    http: httpx.Client
    weights: Path
    adapter: Path
    applications: list[dict[str, Any]]

    def read_logs(self) -> str:
        """Returns all that the cluster's processes have logged."""
        logs = (self.cluster.folder / "ray" / "session_latest" / "logs").rglob("*")
        return "\n".join(
            path.read_text(errors="replace")
            for path in logs
            if path.suffix in (".log", ".err", ".out") and path.is_file()
        )


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    weights = make_tiny_llama(folder / "llama")
    adapter = make_tiny_adapter(folder / "adapter")
    modules = folder / "modules"
    modules.mkdir()
    shutil.copy(SERVE / "user_models.py", modules / "shouting_models.py")
    archive = folder / "user.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(SERVE / "user_echo.py", "user/user_echo.py")

    env = {"PYTHONPATH": str(modules), "NAME_OF_THE_RUN": "loud"}
    with LocalCluster(RAY_ENV, env=env) as cluster:
        applications = [
            *applications_of(weights, adapter, archive),
            router_application(cluster.port),
        ]
        cluster.deploy(applications, by_command=True)
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        with (
            openai.OpenAI(
                base_url=f"{cluster.url}/v1",
                api_key="not-checked",
                max_retries=0,
                timeout=REQUEST_TIMEOUT_S,
            ) as client,
            httpx.Client(base_url=cluster.url, timeout=REQUEST_TIMEOUT_S) as http,
        ):
            yield Service(cluster, client, http, weights, adapter, applications)


def applications_of(weights: Path, adapter: Path, archive: Path) -> list[dict[str, Any]]:
    """Returns the models' entries in the Serve file."""
    engine = {
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": "64M",
    }
    language = {"name_or_path": str(weights)}
    small: dict[str, Any] = {"cpus": 0.1, "gpus": 0}
    own = {"import": "shouting_models"}
    backwards = model_application(
        "backwards", {"model": {"family": "echo", "import": "user_echo"}, "hardware": small}
    )
    backwards["runtime_env"] = {"working_dir": f"file://{archive}"}
    return [
        model_application(
            "tiny",
            {
                "model": language,
                "hardware": {"cpus": 1, "gpus": 0},
                "model_optim": {"dtype": "float32"},
                "serving": {
                    "aliases": ["org/Tiny-1B:latest"],
                    "adapters": [{"name": "tiny-adapter", "path": str(adapter)}],
                    "engine": {
                        **engine,
                        "enable_auto_tool_choice": True,
                        "tool_call_parser": "hermes",
                    },
                },
            },
        ),
        model_application(
            "embedder",
            {
                "task": "embedding",
                "model": language,
                "hardware": {"cpus": 1, "gpus": 0},
                "model_optim": {"dtype": "float32"},
                "serving": {"engine": engine},
            },
        ),
        model_application(
            "echo",
            {
                "model": {"family": "echo"},
                "hardware": small,
                "serving": {"aliases": ["gpt-4o-mini"]},
            },
        ),
        model_application(
            "slow",
            {
                "model": {"family": "echo"},
                "hardware": small,
                "serving": {
                    "max_ongoing_requests": 1,
                    "max_queued_requests": 1,
                    "engine": {"token_interval_s": 0.1},
                },
            },
        ),
        model_application(
            "shouting",
            {
                "run_name": "${NAME_OF_THE_RUN}",
                "seed": "${NOT_SET:-2}",
                "model": {"family": "shouting", **own},
                "hardware": small,
            },
        ),
        model_application("spelling", {"model": {"family": "spelling", **own}, "hardware": small}),
        backwards,
    ]
