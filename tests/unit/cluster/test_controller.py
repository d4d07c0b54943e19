"""The one place that goes beyond Ray's public API: fails here, with a reason, when Ray moves."""

from __future__ import annotations

import inspect

import pytest
from ray.serve import context
from ray.serve._private.client import ServeControllerClient

from truthgpt_serve.cluster.controller import fetch_serve_state

MOVED = "Ray's interface moved: adapt truthgpt_serve/cluster/controller.py"


def test_the_function_that_finds_serve_is_where_it_was() -> None:
    assert hasattr(context, "_get_global_client"), MOVED
    parameters = inspect.signature(context._get_global_client).parameters
    assert "raise_if_no_controller_running" in parameters, MOVED
    assert not inspect.signature(ServeControllerClient.get_serve_details).parameters.keys() - {
        "self",
        "source",
    }, MOVED


def test_without_serve_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="Serve is not running"):
        fetch_serve_state()
