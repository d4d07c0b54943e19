"""Schemathesis against the router and classes as users write them, without Ray.

What the cluster adds, and the routes of engines, are in `tests/serve`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openapi_run.plan import Model, narrowed
from tests.openapi_run.run import run
from tests.support.oip_service import Mirror, serving
from tests.support.sample_models import spec_of
from tests.unit.server.audio.test_routes import Interpreter
from tests.unit.server.embeddings.test_routes import Letters
from truthgpt_serve.router.openapi import openapi_document

PATHS = (
    r"/v1/(audio|models|files|usage)/?.*|/v1/embeddings|/v2.*|/(docs|health|openapi.json|ready)?"
)
SEED = 7


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    specs = {
        "interpreter": (spec_of(Interpreter), {"task": "custom"}),
        "letters": (spec_of(Letters), {"task": "embedding"}),
        "mirror": (spec_of(Mirror), {"task": "tensor"}),
    }
    with serving(specs) as service:
        yield service.router


@pytest.mark.long("runs schemathesis")
def test_answers_are_as_documented(url: str, tmp_path: Path) -> None:
    outcome = run(
        url,
        tmp_path,
        seed=SEED,
        max_examples=20,
        paths=PATHS,
        more_checks=["negative_data_rejection"],
        timeout_s=150,
    )
    assert outcome.passed, outcome.text
    for label, statuses in outcome.statuses.items():
        good = {"GET /": 307, "GET /v1/files/images/{id}": 404, "GET /v1/usage": 404}
        assert statuses[good.get(label, 200)], outcome.table()
        assert statuses[405], outcome.table()
    assert len(outcome.statuses) == 21, outcome.table()


def test_a_fault_of_the_service_is_found(url: str, tmp_path: Path) -> None:
    """The other way around: an answer that is not as documented fails the run."""
    document = openapi_document()
    response = document["paths"]["/health"]["get"]["responses"]["200"]
    response["content"]["application/json"]["schema"]["required"] = ["status", "uptime"]
    outcome = run(url, tmp_path, seed=SEED, max_examples=1, paths="/health", document=document)
    assert not outcome.passed
    assert "uptime" in outcome.text


@pytest.mark.long("runs schemathesis")
def test_what_should_be_refused_is_found(url: str, tmp_path: Path) -> None:
    document = openapi_document()
    document["components"]["schemas"]["EmbeddingRequest"]["properties"]["user"] = {"type": "string"}
    outcome = run(
        url,
        tmp_path,
        seed=SEED,
        max_examples=1,
        paths="/v1/embeddings",
        more_checks=["negative_data_rejection"],
        document=document,
    )
    assert not outcome.passed
    assert "Schema-violating request accepted" in outcome.text


def test_models_are_asked_what_they_can_do() -> None:
    models = [Model("story", "text-generation", "vllm"), Model("echo", "text-generation", "echo")]
    document = narrowed(openapi_document(), models)
    names = {}
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/images/generations"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        suffix = content["schema"]["$ref"].partition("_")[2]
        names[path] = document["components"]["schemas"][f"ModelName_{suffix}"]["enum"]
    assert names == {
        "/v1/chat/completions": ["story", "echo"],
        "/v1/messages": ["story", "echo"],
        "/v1/images/generations": ["story", "echo"],
    }
