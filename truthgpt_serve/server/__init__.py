"""Serves any class with `load` and `infer` over HTTP; knows nothing of Ray, routing or families."""

from truthgpt_serve.server.application import Application, create_app, create_asgi_app
from truthgpt_serve.server.instance import ModelInstance

__all__ = ["Application", "ModelInstance", "create_app", "create_asgi_app"]
