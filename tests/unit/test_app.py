"""What the builders of applications make of a configuration.

tests/serve deploys what they build.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from truthgpt_serve.app import find_affinity, playground
from truthgpt_serve.checks import resolve_family
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError


@pytest.mark.parametrize(
    ("family", "serving", "affinity"),
    [
        ("vllm", {}, "prefix"),
        ("vllm", {"affinity": "auto", "engine": {"enable_prefix_caching": True}}, "prefix"),
        ("vllm", {"engine": {"enable_prefix_caching": False}}, "session"),
        ("vllm", {"affinity": "session"}, "session"),
        ("vllm", {"affinity": "none"}, "none"),
        ("echo", {}, "session"),
        ("echo", {"affinity": "prefix"}, "prefix"),
    ],
)
def test_affinity_follows_the_family(family: str, serving: dict[str, Any], affinity: str) -> None:
    model = {"family": family, "name_or_path": "org/model"}
    config = load_model_config({"model": model, "serving": serving})
    assert find_affinity(config.to_cfg(), resolve_family(config)) == affinity


def test_an_unknown_affinity_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config({"model": {"family": "echo"}, "serving": {"affinity": "sticky"}})
    (fault,) = caught.value.faults
    assert fault.place.endswith("serving.affinity")
    assert "'sticky'" in fault.message
    assert "prefix" in f"{fault.message} {fault.fix}"


def test_a_playground_that_may_fail_starts_before_its_first_visitor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_demand = playground({})._bound_deployment
    assert on_demand._deployment_config.autoscaling_config is not None
    monkeypatch.setitem(sys.modules, "gradio", None)
    at_once = playground({})._bound_deployment
    assert at_once._deployment_config.autoscaling_config is None
    assert at_once.num_replicas == 1
    assert "needs Gradio" in capsys.readouterr().err
