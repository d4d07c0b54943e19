"""Checks the keys of one model, from a file of its own or from its application in a Serve file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.checks import check_model, resolve_family
from truthgpt_serve.config import ModelConfig, Source
from truthgpt_serve.config.faults import in_file_order
from truthgpt_serve.config.load import parse_model
from truthgpt_serve.errors import RegistryError
from truthgpt_serve.registry import import_user_module
from truthgpt_serve.validate.ray_settings import check_request_time
from truthgpt_serve.validate.report import Checked, Report


def check_model_data(
    report: Report,
    data: Any,
    source: Source,
    name: str | None,
    *,
    remote_code: bool = False,
    deployment: Mapping[str, Any] | None = None,
) -> ModelConfig | None:
    """Checks a model's keys; with faults it still returns what can be checked further.

    Args:
        report: Is told of each fault and of the model.
        data: The keys.
        source: Where they stand.
        name: The name of its application, or None.
        remote_code: Whether the application brings code that is not on this machine.
        deployment: What the Serve file says of the model's deployment.
    """
    config, faults = parse_model(data, source)
    if config is None:
        report.add(faults)
        return None
    faults += check_request_time(config.serving.max_request_s, source, "serving", "max_request_s")
    if remote_code and not _is_importable(config.model.import_):
        module = config.model.import_
        note = (
            f"{module!r} comes with the application's runtime_env: its family is not checked here"
        )
        report.notes.append(f"{source.at('model', 'import')}: {source.hidden.hide(note)}")
        report.add(faults, source)
        return config
    found = [*faults, *check_model(config)]
    report.add(in_file_order(found, source), source)
    if not found:
        family = resolve_family(config).name
        what = f"{config.task} by {family}"
        report.checked.append(f"{source.file}: {f'{name}: ' if name else ''}{what}")
    report.models.append(Checked(config, source, deployment, name))
    return config


def _is_importable(module: str | None) -> bool:
    if module is None:
        return True
    try:
        import_user_module(module)
    except RegistryError as error:
        return not isinstance(error.__cause__, ModuleNotFoundError)
    return True
