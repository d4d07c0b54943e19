"""Leaves out of Ray's processes what the service does not use. The one file that does so.

- The dashboard has eleven processes; `serve deploy` and jobs need two of its modules.
- The autoscaler's monitor has nothing to scale on machines that are added by hand.
- Nobody uses the server of Ray's client, which `ray start` has and `serve run` has not.
- Workers import Ray Serve without pandas, by a worker program of this package.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from truthgpt_serve.cluster.service import ray_worker

MODULES_VARIABLE = "TRUTHGPT_DASHBOARD_MODULES"
"""Names the dashboard's modules, with commas between them; `all` is what Ray starts by itself."""
ALL_MODULES = "all"
_MODULES_OPTION = "--modules-to-load"
_DASHBOARD = "dashboard"
_PARAMETERS = ("worker_path", "no_monitor", "autoscaling_config", "ray_client_server_port")


class RayMovedError(RuntimeError):
    """Ray has no longer what a file of this package changes."""


def lighten_ray() -> None:
    """Changes what this process starts as a node of Ray; call it before Ray starts, once.

    Raises:
        RayMovedError: This release of Ray has other parts.
    """
    services = importlib.import_module("ray._private.services")
    parameter = importlib.import_module("ray._private.parameter")
    constants = importlib.import_module("ray._private.ray_constants")
    if getattr(constants, "PROCESS_TYPE_DASHBOARD", None) != _DASHBOARD:
        raise RayMovedError(f"Ray's dashboard is named differently: adapt {__file__}")
    for module, name in ((services, "start_ray_process"), (parameter, "RayParams")):
        if not hasattr(module, name):
            raise RayMovedError(f"{module.__name__}.{name} is gone: adapt {__file__}")
    _set(services, "start_ray_process", _with_few_modules(services.start_ray_process))
    _set(parameter, "RayParams", _light_params(parameter.RayParams))


def _set(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)


def _with_few_modules(start: Callable[..., Any]) -> Callable[..., Any]:
    """Returns Ray's function with the dashboard's modules named in its command."""

    def start_with_few(command: Sequence[str], process_type: str, *args: Any, **more: Any) -> Any:
        named = any(argument.startswith(_MODULES_OPTION) for argument in command)
        modules = os.environ.get(MODULES_VARIABLE, ALL_MODULES)
        if process_type == _DASHBOARD and modules != ALL_MODULES and not named:
            command = [*command, f"{_MODULES_OPTION}={modules}"]
        return start(command, process_type, *args, **more)

    return start_with_few


def _light_params(params: type[Any]) -> type[Any]:
    """Returns Ray's parameters of a node with the worker program, without what nobody uses."""

    class LightParams(params):  # type: ignore[misc]  # a class of Ray's, known at run time
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for name in _PARAMETERS:
                if not hasattr(self, name):
                    raise RayMovedError(f"Ray's parameters of a node have no {name}")
            self.worker_path: str = vars(self)["worker_path"] or ray_worker.__file__
            if vars(self)["autoscaling_config"] is None:
                self.no_monitor = True
            self.ray_client_server_port = None

    return LightParams
