from __future__ import annotations

import pytest

from truthgpt_serve.config import (
    load_router_config,
)
from truthgpt_serve.errors import ConfigError


def test_router_defaults() -> None:
    config = load_router_config({})
    assert config.max_body_bytes == 64 * 1024 * 1024
    assert (config.request_timeout_s, config.hold_timeout_s) == (600, 60)
    assert config.num_replicas is None
    with pytest.raises(ConfigError, match=r"router: hold_timeout: unknown field `hold_timeout` "):
        load_router_config({"hold_timeout": 5})
