"""Serves any class with `load` and `infer` over HTTP; knows nothing of Ray, routing or families."""

from truthgpt_serve.server.application import Application, create_app
from truthgpt_serve.server.instance import ModelHost

__all__ = ["Application", "ModelHost", "create_app"]
