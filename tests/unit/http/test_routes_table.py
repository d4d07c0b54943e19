"""Every kind of model times every route, at its own address and through the router."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy
import pytest

from tests import route_table
from tests.support.oip_service import Service, serving
from tests.support.remote_servers import Hosted, remote_cfg
from tests.support.sample_models import Base, Upper, spec_of
from tests.support.servers import serve_asgi


class Vectors(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"embedding": [1.0, 2.0]}


class Painter(Base):
    operations = ("generation", "edit", "variation")

    def infer(self, inputs: dict[str, Any]) -> Any:
        raise AssertionError("no request of the table is whole")


class Tensors(Base):
    def infer(self, inputs: dict[str, Any]) -> Any:
        return {"y": numpy.zeros(1, numpy.float32)}


class Listener(Base):
    operations = ("transcription", "translation")

    def infer(self, inputs: dict[str, Any]) -> Any:
        raise AssertionError("no request of the table is whole")


class Odd(Base):
    """Does nothing but the generic route."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        return inputs


MODELS: dict[str, tuple[type, str, tuple[str, ...]]] = {
    "text": (Upper, "text-generation", route_table.TEXT),
    "vectors": (Vectors, "embedding", ("/v1/embeddings",)),
    "painter": (Painter, "image-generation", route_table.IMAGES),
    "tensors": (Tensors, "tensor", route_table.TENSORS),
    "listener": (Listener, "custom", route_table.SPEECH),
    "odd": (Odd, "custom", ()),
}
"""Class, task and own routes of each kind."""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    specs = {name: (spec_of(cls), {"task": task}) for name, (cls, task, _) in MODELS.items()}
    with serving(specs) as running:
        yield running


@pytest.mark.parametrize("name", MODELS)
def test_at_the_models_own_address(service: Service, name: str) -> None:
    with httpx.Client(base_url=service.proxy, timeout=20) as client:
        for case in route_table.cases(name, MODELS[name][2], router=False):
            route_table.check(client, name, case, prefix=f"/models/{name}")


@pytest.mark.parametrize("name", MODELS)
def test_through_the_router(service: Service, name: str) -> None:
    with httpx.Client(base_url=service.router, timeout=20) as client:
        for case in route_table.cases(name, MODELS[name][2], router=True):
            route_table.check(client, name, case)


def test_a_remote_model_follows_the_rule_as_well(service: Service) -> None:
    base_url = f"{service.proxy}/models/text/v1"
    app = Hosted(remote_cfg(base_url), "far")
    with (
        serve_asgi(app, lifespan="on") as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        for case in route_table.cases("far", route_table.TEXT, router=False):
            route_table.check(client, "far", case)
