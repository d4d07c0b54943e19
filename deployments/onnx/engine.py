"""The one file that imports ONNX Runtime: providers, their probe, and sessions."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from deployments.onnx.config import OnnxSettings, settings_of
from deployments.onnx.probe import probe_model
from deployments.onnx.signature import Arrays, Tensor, create_tensor
from truthgpt_serve.cancellation import CallCancelledError, current_call
from truthgpt_serve.errors import ConfigError, Fault, RequestError, ServerError

logger = logging.getLogger(__name__)
state = onnxruntime.capi.onnxruntime_pybind11_state

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
INSTALL = {
    "cpu": "install the package onnxruntime",
    "cuda": "install onnxruntime-gpu instead of onnxruntime, with the CUDA and cuDNN that it names",
    "tensorrt": "install onnxruntime-gpu instead of onnxruntime, and the TensorRT that it names",
}
_OPTIMIZATION = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_FATAL_ONLY = 4
"""ONNX Runtime's severity: what else it would print arrives here as an exception."""
_DETAIL = "Status Message: "
_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_MAX_DETAIL = 500


def choose_provider(cfg: Mapping[str, Any]) -> str:
    """Returns `cpu`, `cuda` or `tensorrt`, after a trial run on it.

    A GPU that only `auto` would use and that does not work is left aside, with a warning in the
    log; what the configuration names must work.

    Raises:
        ConfigError: A named provider does not work here; the message says how to get it.
    """
    settings, hardware = settings_of(cfg), cfg["hardware"]
    wanted = settings.execution_provider
    place = "serving.engine.execution_provider"
    if wanted == "auto" and hardware["device"] == "cuda":
        wanted, place = "cuda", "hardware.device"
    if wanted != "auto":
        if (problem := probe_provider(wanted, settings)) is not None:
            raise ConfigError([Fault(place, f"{wanted}: {problem}", INSTALL[wanted])])
        return wanted
    gpus = hardware["gpus"]
    if hardware["device"] == "cpu" or gpus == 0:
        return "cpu"
    problem = probe_provider("cuda", settings)
    if problem is None:
        return "cuda"
    # In a replica `gpus` is a number: a GPU is reserved and would idle. With `auto` none is.
    level = logging.INFO if gpus == "auto" else logging.WARNING
    logger.log(level, "the GPU is not used: %s; %s", problem, INSTALL["cuda"])
    return "cpu"


def probe_provider(name: str, settings: OnnxSettings) -> str | None:
    """Returns why a provider does not work on this machine, or None when it does.

    ONNX Runtime goes on with the CPU when a provider's libraries do not load, and says so only in
    its log: so a small graph is run, and the session is asked where.
    """
    provider = PROVIDERS[name]
    available = onnxruntime.get_available_providers()
    if provider not in available:
        return f"this build of ONNX Runtime has only {', '.join(available)}"
    if name != "cpu":
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    try:
        with _without_fallback():
            session = onnxruntime.InferenceSession(
                probe_model(), options, providers=_with_options(name, settings)
            )
        if provider not in session.get_providers():
            return f"{provider} does not load; the libraries it needs are missing or do not fit"
        [product] = session.run(None, {"x": numpy.full((2, 2), 3, numpy.float32)})
    except Exception as error:  # of many kinds, by provider
        return _detail(error)
    if not numpy.array_equal(product, numpy.full((2, 2), 18, numpy.float32)):
        return f"{provider} computes {product.tolist()} where 18 is right"
    return None


def _with_options(name: str, settings: OnnxSettings) -> list[Any]:
    """Returns ONNX Runtime's list of providers; nodes that TensorRT does not have run on CUDA."""
    given = {key: str(value) for key, value in settings.provider_options.items()}
    rest = [PROVIDERS["cuda"]] if name == "tensorrt" else []
    return [(PROVIDERS[name], given) if given else PROVIDERS[name], *rest]


@contextlib.contextmanager
def _without_fallback() -> Iterator[None]:
    """Makes errors of the warnings by which ONNX Runtime goes on without a provider."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module="onnxruntime")
        yield


def _detail(error: Exception) -> str:
    """Returns what ONNX Runtime has to say, without the places in its own source."""
    text = str(error)
    if _DETAIL in text:
        text = text.rpartition(_DETAIL)[2]
    text = _CODE.sub("", text)
    return text.strip().partition("\n")[0][:_MAX_DETAIL]


class Session:
    """One loaded graph.

    Args:
        path: The .onnx file.
        cfg: The configuration as a nested dict.

    Attributes:
        provider: Where it runs: `cpu`, `cuda` or `tensorrt`.
        num_threads: Threads of one run.
        inputs: The graph's inputs.
        outputs: The graph's outputs.
        acceleration: The model's backend, for its card.

    Raises:
        ConfigError: The file cannot be loaded, the provider does not work here or not with these
            options, or an input or output is no tensor.
    """

    def __init__(self, path: Path, cfg: Mapping[str, Any]) -> None:
        settings = settings_of(cfg)
        self.provider = choose_provider(cfg)
        self.num_threads = max(1, int(cfg["hardware"]["cpus"]))
        try:
            with _without_fallback():
                self._session = onnxruntime.InferenceSession(
                    str(path),
                    self._options(settings),
                    providers=_with_options(self.provider, settings),
                )
        except Exception as error:  # of many kinds, a class for each of its own codes
            message = f"ONNX Runtime cannot load it: {_detail(error)}"
            raise ConfigError([Fault(str(path), message)]) from error
        if PROVIDERS[self.provider] not in self._session.get_providers():
            message = f"{self.provider} works, but not for this file"
            raise ConfigError([Fault(str(path), message, "name execution_provider: cpu")])
        self._session.disable_fallback()
        self.inputs = self._tensors(path, self._session.get_inputs())
        self.outputs = self._tensors(path, self._session.get_outputs())
        self._names = [tensor.name for tensor in self.outputs]
        self.acceleration = {
            "execution_provider": self.provider,
            "execution_providers": self._session.get_providers(),
            "graph_optimization": settings.graph_optimization,
            "num_threads": self.num_threads,
        }

    def _options(self, settings: OnnxSettings) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.graph_optimization_level = _OPTIMIZATION[settings.graph_optimization]
        options.intra_op_num_threads = self.num_threads
        options.inter_op_num_threads = self.num_threads if settings.parallel_branches else 1
        if settings.parallel_branches:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        for scope in ("intra_op", "inter_op"):
            spin = "1" if settings.spinning else "0"
            options.add_session_config_entry(f"session.{scope}.allow_spinning", spin)
        return options

    @staticmethod
    def _tensors(path: Path, nodes: Any) -> list[Tensor]:
        return [create_tensor(node.name, node.type, node.shape, str(path)) for node in nodes]

    def run(self, arrays: Arrays) -> Arrays:
        """Computes the outputs; may be called from several threads.

        Raises:
            RequestError: The graph refuses the inputs, such as an index out of range.
            ServerError: Anything else fails in the graph.
            CallCancelledError: The call was cancelled: no request waits for the outputs.
        """
        call, options = current_call(), onnxruntime.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            with call.on_cancel(partial(setattr, options, "terminate", True)):
                outputs = self._session.run(self._names, arrays, options)
        except state.InvalidArgument as error:
            raise RequestError(f"the model refuses the inputs: {_detail(error)}") from error
        except Exception as error:  # a class for each of ONNX Runtime's codes
            if call.cancelled:
                raise CallCancelledError("every client of this call disconnected") from error
            raise ServerError(f"the graph failed: {_detail(error)}") from error
        return dict(zip(self._names, outputs, strict=True))
