"""The playground's application."""

from __future__ import annotations

import sys

import pytest

from truthgpt_serve.errors import ConfigError
from truthgpt_serve.playground.application import require_gradio


def test_without_gradio_the_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"needs Gradio.*truthgpt-serve\[ui\]"):
        require_gradio()
