"""Some seeded bad requests against the whole service; `python -m tests.fuzz` sends thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.run import Fuzz, models_of
from tests.serve.whole_service.conftest import Service
from truthgpt_serve.cluster.processes import find_run

NUM_REQUESTS = 200
SEED = 11
SLOW = "slow"
"""Answers a word in 0.1 s, one request at a time: a good request takes it minutes."""


@pytest.mark.timeout(600)
async def test_bad_requests_are_refused_in_their_apis_form(service: Service) -> None:
    models = [name for name in await models_of(service.cluster.url) if name != SLOW]
    before = find_run(service.cluster.run_id)
    fuzz = Fuzz(service.cluster.url, SEED, models)
    await fuzz.run(NUM_REQUESTS, 4, "tiny")
    fuzz.compare(before, find_run(service.cluster.run_id))
    assert fuzz.findings == [], fuzz.report()
