"""A vLLM whose methods moved is refused."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.vllm.patches.methods import replace_method

PARAMETERS = ("hidden_states", "num_scheduled_tokens")


def moved_parameters(self: Any, states: Any) -> None:
    """A method whose parameters are others."""


@pytest.mark.parametrize("members", [{}, {"method": 1}, {"method": moved_parameters}])
def test_a_vllm_that_moved_is_refused(members: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match=r"Runner\.method.*adapt deployments/vllm/patches"):
        replace_method(type("Runner", (), members), "method", PARAMETERS, lambda f: f)
