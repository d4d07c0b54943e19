"""The list of vLLM's routes that clients reach fits the routes of the installed vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.vllm.application.routes import LISTED, as_listed
from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.http.routes import find_routes

PROGRAM = Path(__file__).parent / "programs" / "vllm_routes.py"

UNLISTED = {
    "documentation": ["/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"],
    "about the server": [
        "/kv_event_sources",
        "/load",
        "/ping",
        "/server_info",
        "/tokenizer_info",
        "/version",
    ],
    "administration": [
        "/adapters",
        "/adapters/{id}",
        "/fault_tolerance/apply",
        "/fault_tolerance/status",
        "/is_scaling_elastic_ep",
        "/scale_elastic_ep",
        "/start_profile",
        "/stop_profile",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ],
    "development": [
        "/abort_requests",
        "/collective_rpc",
        "/is_sleeping",
        "/release_kv_cache_memory",
        "/reset_encoder_cache",
        "/reset_mm_cache",
        "/reset_prefix_cache",
        "/sleep",
        "/wake_up",
    ],
    "reinforcement learning": [
        "/finish_weight_update",
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/is_paused",
        "/pause",
        "/resume",
        "/shutdown_weight_transfer_engine",
        "/start_draft_weight_update",
        "/start_weight_update",
        "/update_weight_version",
        "/update_weights",
        "/weight_checker",
        "/weight_info",
    ],
    "for vLLM's own servers": [
        "/inference/v1/abort_requests",
        "/inference/v1/generate",
        "/v1/chat/completions/derender",
        "/v1/chat/completions/render",
        "/v1/completions/derender",
        "/v1/completions/render",
        "/v1/messages/render",
        "/v1/responses/render",
    ],
    "inference that no client of other APIs sends": [
        "/generative_scoring",
        "/invocations",
        "/v1/systemone",
    ],
    "paths that mean something else in this service": ["/v2/embed", "/v2/rerank"],
    "a WebSocket": ["/v1/realtime"],
}
"""Every other route of the installed vLLM, by why it is not listed."""


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    weights = make_tiny_llama(tmp_path_factory.mktemp("routes") / "llama")
    done = subprocess.run(
        [sys.executable, PROGRAM, weights],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, list[str]] = {}
    for path, methods in json.loads(done.stdout.splitlines()[-1]).items():
        found.setdefault(as_listed(path), []).extend(methods)
    return found


def test_every_route_is_listed_or_known(routes: dict[str, list[str]]) -> None:
    unlisted = [path for paths in UNLISTED.values() for path in paths]
    assert not set(unlisted) & set(LISTED)
    new = set(routes) - set(LISTED) - set(unlisted)
    assert not new, f"decide in deployments/vllm/application/routes.py who reaches {new}"
    gone = set(unlisted) - set(routes)
    assert not gone, f"this vLLM has them no more: {gone}"


def test_every_listed_route_is_there(routes: dict[str, list[str]]) -> None:
    missing = {path for path, method in LISTED.items() if method not in routes.get(path, ())}
    assert not missing, f"this vLLM does not have them: {missing}"


def test_the_service_knows_every_listed_route() -> None:
    for path, method in LISTED.items():
        assert [one.methods for one in find_routes(path, "model") if one.path == path] == [
            (method,)
        ], path
