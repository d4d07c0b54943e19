"""The family `onnxruntime` as a model class: checks, joins, runs."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from typing import Any

from deployments.onnx.config import find_file, settings_of
from deployments.onnx.engine import Session
from deployments.onnx.rows import batch_key, groups, rows_are_independent, run_joined
from deployments.onnx.signature import Arrays, check_inputs, common_axis
from truthgpt_serve.errors import ConfigError, Fault, ServerError

logger = logging.getLogger(__name__)


class OnnxModel:
    """One graph of ONNX Runtime.

    Inputs and outputs are dicts of tensor name to numpy array; tensors of texts are arrays of
    `object` with `str`.
    """

    def __init__(self) -> None:
        self._session: Session | None = None
        self._joins = False
        self._max_rows = 1

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the graph and finds out whether requests may be joined.

        Raises:
            ConfigError: There is no such file, it cannot be loaded, or the execution provider does
                not work here.
        """
        path = find_file(cfg)
        if isinstance(path, Fault):
            raise ConfigError([path])
        settings = settings_of(cfg)
        self._session = session = Session(path, cfg)
        self._max_rows = settings.max_batch_rows
        self._joins = self._may_join(session, settings.batch_requests, cfg["seed"])
        logger.info(
            "%s: %s, %d threads, requests %s",
            path,
            session.provider,
            session.num_threads,
            "are joined along the first axis" if self._joins else "run one by one",
        )

    @staticmethod
    def _may_join(session: Session, wanted: bool | str, seed: int) -> bool:
        if wanted is False:
            return False
        if not common_axis(session.inputs, session.outputs):
            if wanted is True:
                described = ", ".join(
                    f"{tensor.name}: {tensor.describe()}"
                    for tensor in (*session.inputs, *session.outputs)
                )
                message = (
                    f"true needs one free first axis that all tensors share, found {described}"
                )
                fix = "export the model with a dynamic batch axis, or write false"
                raise ConfigError([Fault("serving.engine.batch_requests", message, fix)])
            return False
        return wanted is True or rows_are_independent(session.run, session.inputs, seed)

    @property
    def _loaded(self) -> Session:
        if self._session is None:
            raise ServerError("the model is not loaded: call `load(cfg)` first")
        return self._session

    @property
    def acceleration(self) -> dict[str, Any]:
        """The model's backend, for its card; empty before `load`."""
        if self._session is None:
            return {}
        return {**self._session.acceleration, "batch_requests": self._joins}

    def metadata(self) -> dict[str, Any]:
        """Returns the tensors as the Open Inference Protocol describes them."""
        session = self._loaded
        return {
            "platform": f"onnxruntime_onnx_{session.provider}",
            "inputs": [tensor.metadata() for tensor in session.inputs],
            "outputs": [tensor.metadata() for tensor in session.outputs],
        }

    def infer(self, inputs: dict[str, Any]) -> Arrays:
        """Returns the outputs of one request.

        Raises:
            RequestError: An input is missing, unknown, or of another type or shape.
            ServerError: The graph failed.
        """
        session = self._loaded
        return session.run(check_inputs(inputs, session.inputs))

    def batch_key(self, inputs: dict[str, Any]) -> Hashable:
        """Returns what requests must share to be joined.

        Raises:
            RequestError: As in `infer`; so a bad request never joins others.
        """
        arrays = check_inputs(inputs, self._loaded.inputs)
        return batch_key(arrays) if self._joins else object()

    def infer_batch(self, requests: list[dict[str, Any]]) -> list[Arrays]:
        """Returns the outputs of each request; joined where the graph allows, in any case its own.

        Raises:
            RequestError: As in `infer`.
            ServerError: The graph failed.
        """
        session = self._loaded
        checked = [check_inputs(inputs, session.inputs) for inputs in requests]
        if not self._joins:
            return [session.run(arrays) for arrays in checked]
        outputs: list[Arrays] = [{}] * len(checked)
        for places in groups(checked, self._max_rows):
            results = run_joined(session.run, [checked[place] for place in places])
            for place, result in zip(places, results, strict=True):
                outputs[place] = result
        return outputs

    def close(self) -> None:
        """Frees the graph."""
        self._session = None
