"""The configuration of models and of the router: schema, defaults, reading, faults.

Knows no registry, no engine and no Ray.
"""

from __future__ import annotations

from truthgpt_serve.config.load import (
    load_model_args,
    load_model_auth,
    load_model_config,
    load_model_cors,
    load_router_args,
    load_router_config,
)
from truthgpt_serve.config.model import ModelConfig
from truthgpt_serve.config.router import RouterConfig
from truthgpt_serve.config.source import Source

__all__ = [
    "ModelConfig",
    "RouterConfig",
    "Source",
    "load_model_args",
    "load_model_auth",
    "load_model_config",
    "load_model_cors",
    "load_router_args",
    "load_router_config",
]
