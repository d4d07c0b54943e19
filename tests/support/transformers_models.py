"""Tiny models and loaded classes for the tests of the family `hf-transformers`.

Knows no test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import openai

from deployments.hf_transformers.config import FAMILY
from tests.support.servers import serve_asgi
from truthgpt_serve.config import load_model_config
from truthgpt_serve.server import create_app


def configuration(
    path: Path, task: str = "text-generation", *, sections: Any = None, **engine: Any
) -> dict[str, Any]:
    """Returns the whole configuration of a model on the CPU in float32."""
    given: dict[str, Any] = {
        "task": task,
        "model": {"family": FAMILY.name, "name_or_path": str(path)},
        "model_optim": {"dtype": "float32"},
        "hardware": {"gpus": 0, "cpus": 1},
        "serving": {"engine": engine},
    }
    for name, section in (sections or {}).items():
        given[name] = {**given.get(name, {}), **section}
    return load_model_config(given, place="test").to_cfg()


@contextmanager
def loaded(cfg: dict[str, Any]) -> Iterator[Any]:
    """Yields a loaded instance of the family's class for the configuration's task."""
    model: Any = FAMILY.load_class(cfg["task"])()
    model.load(cfg)
    try:
        yield model
    finally:
        model.close()


def embed(cfg: dict[str, Any]) -> tuple[Any, Any]:
    """Returns the vectors of two texts, shape (2, size), and the engine that made them."""
    texts = [{"text": "the cat"}, {"text": "a small red dog runs"}]
    with loaded(cfg) as model:
        answers = model.infer_batch(texts)
        return numpy.stack([answer["embedding"] for answer in answers]), model._engine


@contextmanager
def client_of(cfg: dict[str, Any], name: str = "tiny") -> Iterator[openai.OpenAI]:
    """Yields OpenAI's client of a server with the model."""
    app = create_app(FAMILY, cfg, name=name)
    with (
        serve_asgi(app, lifespan="on") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client
