"""The routes of engines against the OpenAPI document, and its examples, over the whole stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.openapi_run.plan import fetch_models, narrowed
from tests.openapi_run.run import run
from tests.serve.whole_service.conftest import Service

PATHS = (
    r"/v1/(chat/)?completions(/batch)?|/v1/responses|/v1/messages.*|/v1/embeddings|/(de)?tokenize"
)
POOLING = r"/v1/rerank|/rerank|/v1/score|/score|/pooling|/classify"
SEED = 7


@pytest.mark.timeout(600)
def test_answers_are_as_documented(service: Service, tmp_path: Path) -> None:
    models = fetch_models(service.cluster.url)
    outcome = run(
        service.cluster.url,
        tmp_path,
        seed=SEED,
        max_examples=15,
        paths=f"{PATHS}|{POOLING}",
        phases=["examples", "fuzzing"],
        models=[model for model in models if model.family == "vllm"],
        timeout_s=400,
    )
    assert outcome.passed, outcome.text
    answered = {label for label, statuses in outcome.statuses.items() if statuses[200]}
    others = {f"POST {path}" for path in POOLING.split("|")} - {"POST /pooling"}
    assert outcome.statuses.keys() - answered <= others, outcome.table()
    assert len(outcome.statuses) == 15, outcome.table()


def test_examples_work(service: Service) -> None:
    document = service.http.get("/openapi.json").json()
    models = [model for model in fetch_models(service.cluster.url) if model.name != "slow"]
    num = 0
    for path, methods in narrowed(document, models)["paths"].items():
        content: dict[str, Any] = methods.get("post", {}).get("requestBody", {}).get("content", {})
        examples = content.get("application/json", {}).get("examples", {})
        for name, example in examples.items():
            if path in NOT_HERE or name == "image":
                continue
            answer = service.http.post(path, json=example["value"])
            place = f"{path} {name}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code == 200, place
            kind = "text/event-stream" if example["value"].get("stream") else "application/json"
            assert answer.headers["content-type"].startswith(kind), place
            if kind == "application/json":
                assert json.loads(answer.content)
            num += 1
    assert num >= 12


NOT_HERE = ("/v1/images/generations", "/v1/rerank", "/v1/score", "/v2/models/{id}/infer")
"""Routes that no model of this service has."""
