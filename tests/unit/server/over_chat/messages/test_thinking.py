"""What a request for Anthropic's Messages API says of thoughts, and what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from truthgpt_serve.errors import RequestError
from truthgpt_serve.server.over_chat.messages.thinking import no_effect, thinking_fields
from truthgpt_serve.server.thinking_switch import Wish

ENABLED = {"type": "enabled", "budget_tokens": 1024}


def wish_of(**body: Any) -> Wish:
    found = []

    def think(wish: Wish, given: Mapping[str, Any]) -> dict[str, Any]:
        found.append(wish)
        return no_effect(wish, given)

    thinking_fields(body, think)
    return found[0]


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        ({}, Wish()),
        ({"thinking": None, "output_config": {"effort": None}}, Wish()),
        ({"thinking": ENABLED}, Wish(is_on=True, max_tokens=1024)),
        ({"thinking": {"type": "disabled", "budget_tokens": 9}}, Wish(is_on=False)),
        ({"thinking": {"type": "adaptive"}}, Wish()),
        ({"output_config": {"effort": "max"}}, Wish(effort="max")),
    ],
)
def test_wishes(body: dict[str, Any], wish: Wish) -> None:
    assert wish_of(**body) == wish


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thinking": "off"}, "thinking"),
        ({"thinking": {"type": "off"}}, "thinking.type"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": ENABLED | {"budget_tokens": "9"}}, "thinking.budget_tokens"),
        ({"thinking": ENABLED | {"budget_tokens": True}}, "thinking.budget_tokens"),
        ({"thinking": ENABLED | {"budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
    ],
)
def test_errors_name_the_place(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as raised:
        wish_of(**body)
    assert raised.value.param == param


def test_variables_of_a_server_whose_template_is_not_known() -> None:
    body = {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"a": 1}}
    assert thinking_fields(body, no_effect) == {"chat_template_kwargs": {"a": 1}}
    assert thinking_fields({"thinking": ENABLED}, no_effect) == {}
    assert thinking_fields({"chat_template_kwargs": 3}, no_effect) == {"chat_template_kwargs": 3}
