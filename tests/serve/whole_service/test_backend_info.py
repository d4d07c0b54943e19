"""The backend of a model, at the router and at the model itself, on the shared real cluster."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.serve.whole_service.conftest import MAX_MODEL_LEN, Service


def acceleration(service: Service, name: str) -> Any:
    """Returns what the router says, once the model has had the time to say it."""
    deadline = time.monotonic() + 30
    while True:
        page = service.http.get(f"/v1/models/{name}").json()
        assert page["id"] == name
        if page["acceleration"] is not None or time.monotonic() > deadline:
            return page["acceleration"]
        time.sleep(0.5)


@pytest.mark.parametrize("name", ["tiny", "tiny-adapter", "embedder"])
def test_vllm_says_what_its_engine_decided(service: Service, name: str) -> None:
    found = acceleration(service, name)
    assert found["device"] == "cpu"
    assert found["dtype"] == "float32"
    assert found["attention"] == "CPU_ATTN"
    assert found["compile"] is None  # `enforce_eager`
    assert found["max_num_seqs"] == 16
    assert found["kv_cache_tokens"] > MAX_MODEL_LEN
    assert found["prefix_caching"] in (True, False)


def test_the_models_own_page_has_it_beside_vllms_entry(service: Service) -> None:
    own = service.http.get("/models/tiny/v1/models/tiny").json()
    assert own["max_model_len"] == MAX_MODEL_LEN
    assert own["acceleration"] == acceleration(service, "tiny")
    can = own["capabilities"]
    assert can == service.http.get("/v1/models/tiny").json()["capabilities"]
    assert (can["context_length"], can["json"], can["images"]) == (MAX_MODEL_LEN, True, False)
    adapter = service.http.get("/models/tiny/v1/models/tiny-adapter").json()
    assert adapter["parent"] == "tiny"
    missing = service.http.get("/models/tiny/v1/models/nosuch")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    refused = service.http.post("/models/tiny/v1/models/tiny", json={})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_what_computes_nothing_has_none(service: Service) -> None:
    page = service.http.get("/v1/models/echo").json()
    assert page["acceleration"] is None
    assert page["card"]["family"] == "echo"
