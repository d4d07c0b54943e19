"""What a model family is: the class that a user writes, and the small specification that names it.

Knows no family, no engine, no Ray and no HTTP.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

from pydantic import BaseModel

from truthgpt_serve.errors import ConfigError, Fault, RegistryError

Task = Literal["text-generation", "image-generation", "embedding", "tensor", "custom"]
TASKS: tuple[str, ...] = get_args(Task)
_ARGUMENTS = {"load": "cfg", "infer": "inputs", "infer_batch": "inputs", "stream": "inputs"}
"""Methods of a class, and the one argument of each."""
MAX_DETAIL = 300
"""Most characters of a probe's detail: some libraries raise pages."""

FAMILY_ENTRY_POINTS = "truthgpt_serve.families"
"""Entry-point group whose values are `FamilySpec` objects in modules that import no engine."""


@runtime_checkable
class Model(Protocol):
    """The whole contract: these two methods serve.

    A class may add any of:

    - `infer_batch(list of inputs) -> list of outputs`: requests are batched, and `infer` is not
      called by the server. Sync or async; one call at a time. The result, a list, a tuple or an
      array, has one output for each of the inputs, in their order; an output that is an exception
      fails its request alone. A call that raises is repeated in halves, down to single requests,
      so it must not leave anything behind.
    - `max_batch_size`: an attribute, the most requests in one call where the configuration does not
      say; 8 without it.
    - `batch_key(inputs) -> hashable`: only requests with equal keys share a batch, such as a shape
      or an adapter. A plain method, called for each request in the thread of `infer_batch`.
    - `stream(inputs)`: a sync or async generator of `{"text": delta}`.
    - `check_health()`: raises when the replica must be replaced.
    - `fatal_error() -> str | None`: why the model can never answer again in this process, such as a
      dead engine, or None; the process is then replaced at once. Called often, so it must be quick.
    - `close()`: frees what `load` took.
    - `metrics()`: its own counts in Prometheus' text format, for `GET /models/<name>/metrics`.
    - `create_asgi_app()`: sync or async, called once after `load`; its ASGI application replaces
      the generic one.
    - `acceleration`: an attribute, a dict about the backend (device, number format, attention, ...)
      in JSON's values, for the model's page at `GET /v1/models/{id}`.
    - `metadata()`, for the task tensor: a dict with `platform`, `inputs` and `outputs`; the last
      two are lists of `{"name", "datatype", "shape"}` in the Open Inference Protocol's words.
    - `request_parameters`, for the task tensor: an attribute with the names of request parameters
      that arrive among the inputs.
    - `max_model_len`: an attribute, the most tokens of a text, for text-generation with its answer;
      what has more by the class's tokenizer is refused before the class sees it.
    - `tokenizer`: an attribute with `apply_chat_template` and `encode`, used for chat and usage.

    `load`, `infer`, `stream` and the other methods may be `async`. A class needs no base class and
    no knowledge of Ray.
    """

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads the weights. `cfg` is the whole configuration, every section present."""

    def infer(self, inputs: dict[str, Any]) -> Any:
        """Answers one request."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing that was tried on this machine.

    Attributes:
        name: What was tried, such as `attention flash_attention_2 (cuda)`.
        works: Whether it works.
        detail: What it gave, or why it does not work; one line.
        fix: What to do about it, or an empty string; one line.
    """

    name: str
    works: bool
    detail: str = ""
    fix: str = ""

    @classmethod
    def attempt(cls, name: str, call: Callable[[], object], fix: str = "") -> Probe:
        """Calls; what it returns is the detail, and whatever it raises is why it does not work.

        Args:
            name: What is tried.
            call: Tries it.
            fix: What to do if it fails; a `ConfigError` brings its own.
        """
        try:
            return cls(name, True, _one_line(call() or ""))
        except ConfigError as error:
            fault = error.faults[0]
            return cls(name, False, _one_line(fault.message), fault.fix or fix)
        except Exception as error:  # libraries fail in many ways, some with errors of their own
            return cls(name, False, _one_line(f"{type(error).__name__}: {error}"), fix)


def _one_line(value: object) -> str:
    lines = str(value).strip().splitlines()
    return lines[0][:MAX_DETAIL] if lines else ""


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """A family's entry in the registry. Importing its module imports no engine.

    Attributes:
        name: What `model.family` says, such as `vllm`.
        class_path: `package.module:Class` of the class with `load` and `infer`.
        class_paths: The same for tasks that have a class of their own; others have `class_path`.
        tasks: The values of `task` that the family can do.
        engine_config: Pydantic model that `serving.engine` must satisfy, or None for any mapping.
        takes_adapters: Whether `serving.adapters` means something.
        adds_adapters: Whether the adapters of `model.adapter` are added to the weights as they
            load. A family with either kind has its adapters trained by `model_optim.lora`.
        needs_weights: Whether `model.name_or_path` is required.
        on_event_loop: Whether the async methods of the class may run on the replica's own event
            loop. Only for code that is known never to block.
        tensor_parallel: Whether a whole number of GPUs above 1 means one engine over a placement
            group with one bundle for each GPU.
        uses_gpus: Whether `gpus: auto` may come to one; not for families that compute elsewhere.
        keeps_prefixes: Says from the configuration (as a nested dict) whether the engine keeps what
            it computed for the beginnings of texts, so that a conversation should stay on one
            replica; None for never.
        max_ongoing_requests: Computes the default from the configuration (as a nested dict), or
            None for the general rule: 64 for a class with `infer_batch` or `stream`, else 1.
        doctor_path: `package.module:function` of what tries the family on this machine, or None.
            It takes the configuration as a nested dict and yields a `Probe` for each thing that
            this one asks for; with None, for each that the family offers. It may import the
            engine, and runs in a process of its own.
        check: Finds faults that a schema cannot; the configuration arrives as a nested dict.
    """

    name: str
    class_path: str
    tasks: tuple[str, ...] = TASKS
    engine_config: type[BaseModel] | None = None
    takes_adapters: bool = False
    adds_adapters: bool = False
    needs_weights: bool = False
    on_event_loop: bool = False
    tensor_parallel: bool = False
    uses_gpus: bool = True
    keeps_prefixes: Callable[[Mapping[str, Any]], bool] | None = None
    max_ongoing_requests: Callable[[Mapping[str, Any]], int] | None = None
    check: Callable[[Mapping[str, Any]], list[Fault]] | None = None
    class_paths: Mapping[str, str] = field(default_factory=dict, hash=False)
    doctor_path: str | None = None
    model_class: type[Model] | None = None
    """The class itself, for one registered in this process by `register_model`."""

    def load_class(self, task: str = "") -> type[Model]:
        """Imports and returns the family's class for a task."""
        if self.model_class is not None:
            return self.model_class
        return cast("type[Model]", _load(self.class_paths.get(task, self.class_path)))

    def load_doctor(self) -> Doctor | None:
        """Imports and returns the function of `doctor_path`, if there is one."""
        return None if self.doctor_path is None else cast("Doctor", _load(self.doctor_path))


def create_model(cls: type[Any], name: str) -> Any:
    """Makes an instance of a family's class, under the model name that clients send.

    Raises:
        RegistryError: The class takes arguments, or one of its methods does not take its own.
    """
    try:
        model = cls()
    except TypeError as error:
        raise RegistryError(
            f"{cls.__qualname__}() failed: {error}; the class is made without arguments, "
            "so set-up belongs in `load(cfg)`"
        ) from error
    for method, argument in _ARGUMENTS.items():
        _check_argument(model, method, argument)
    if callable(set_name := getattr(model, "set_name", None)):
        set_name(name)
    return model


def _check_argument(model: Any, method: str, argument: str) -> None:
    """Refuses a method that cannot be called, before anything is loaded."""
    function = getattr(model, method, None)
    if not callable(function):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it tells nothing
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise RegistryError(
            f"{type(model).__qualname__}.{method} is called with `{argument}` alone, and it takes "
            f"{signature}: {error}; write `def {method}(self, {argument})`"
        ) from None


Doctor = Callable[[Mapping[str, Any] | None], Iterable[Probe]]
"""Tries what a configuration asks for, or all that a family offers."""


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
