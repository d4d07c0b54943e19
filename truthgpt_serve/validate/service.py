"""Checks a Serve file with every model in it, or one model's file, without starting anything.

Imports no engine, except for `machine=True`. `truthgpt_serve.cli` prints the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.config import ModelConfig, RouterConfig, Source
from truthgpt_serve.config.auth import AuthArgs
from truthgpt_serve.config.cors import CorsSection
from truthgpt_serve.config.faults import in_file_order
from truthgpt_serve.config.load import (
    check_model_args,
    config_path,
    read_file,
    read_named_file,
    without_service_keys,
)
from truthgpt_serve.config.parse import SectionT, parse
from truthgpt_serve.config.paths import find_config
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.errors import ConfigError, Fault
from truthgpt_serve.validate.applications import (
    MODEL_DEPLOYMENT,
    MODEL_IMPORT,
    PLAYGROUND_DEPLOYMENT,
    PLAYGROUND_IMPORT,
    ROUTER_DEPLOYMENT,
    ROUTER_IMPORT,
    check_import_path,
    check_model_name,
    check_overrides,
    check_playground_place,
    check_router_place,
    find_deployment,
    import_target,
)
from truthgpt_serve.validate.keys import KeysCheck
from truthgpt_serve.validate.machine import check_machine, note_shortages
from truthgpt_serve.validate.model import check_model_data
from truthgpt_serve.validate.ray_settings import check_host, check_request_time
from truthgpt_serve.validate.report import Checked, CheckedModel, Report
from truthgpt_serve.wording import nearest

_SERVE_KEYS = ("applications", "http_options", "proxy_location", "grpc_options", "logging_config")


def validate_file(path: str | Path, *, machine: bool = False, classes: bool = True) -> Report:
    """Checks a Serve file or a model's file.

    Args:
        path: The file, looked up like any configuration.
        machine: Also import each family's class, and compare what is asked for with this machine.
        classes: With `machine`, whether to import the classes of families that can be examined in
            a process of their own (`FamilySpec.doctor_path`).

    Returns:
        Every fault at once; nothing is raised for a bad file.
    """
    report = Report()
    try:
        file = find_config(path)
        data, source = read_file(file, shown=str(path), numbers=False)
        if _is_serve_file(data):
            _ServiceCheck(report, data, source).run()
        else:
            data, source = read_file(file, shown=str(path))
            check_model_data(report, data, source, None)
    except ConfigError as error:
        report.add(error.faults)
    if machine:
        check_machine(report, str(path), classes=classes)
    elif not report.faults:
        note_shortages(report, str(path))
    return report


def _parse(kind: type[SectionT], data: Any, source: Source) -> tuple[SectionT | None, list[Fault]]:
    if not isinstance(data, dict):
        return None, []  # Ray's schema says so
    return parse(kind, data, source)[:2]


def _is_serve_file(data: Any) -> bool:
    if not isinstance(data, Mapping):
        return False
    serve, ours = (
        sum(nearest(key, known, 0.8) is not None for key in data)
        for known in (_SERVE_KEYS, ModelConfig.model_fields)
    )
    return serve > ours


class _ServiceCheck:
    """One pass over a Serve file."""

    def __init__(self, report: Report, data: Mapping[str, Any], source: Source) -> None:
        self._report = report
        self._data = data
        self._source = source
        self._prefixes: dict[str, str] = {}
        self._names: dict[str, str] = {}
        """Each model and application name with the place that took it."""
        self._routers: list[Source] = []
        self._keys = KeysCheck()

    def run(self) -> None:
        """Fills the report."""
        # Ray takes a second to import, which a model's file does not need.
        from truthgpt_serve.validate.serve_file import check_serve_schema

        faults = check_serve_schema(self._data, self._source)
        self._report.add(in_file_order(faults, self._source))
        applications = self._data.get("applications")
        if applications == []:
            place = self._source.at("applications")
            self._report.notes.append(f"{place}: is empty; applying this file ends all models")
        for index, application in enumerate(applications if isinstance(applications, list) else []):
            if isinstance(application, dict):
                self._check_application(application, self._source.under("applications", index))
        self._check_further_names()
        options = self._data.get("http_options")
        self._report.add(check_host(options, self._source))
        host = options.get("host") if isinstance(options, Mapping) else None
        self._report.add(self._keys.finish(host, self._source))

    def _check_application(self, application: dict[str, Any], source: Source) -> None:
        target = import_target(application.get("import_path"))
        self._report.add(check_import_path(target, source))
        self._check_unique(application, source)
        if target == MODEL_IMPORT:
            self._check_model_application(application, source)
        elif target == ROUTER_IMPORT:
            self._check_router(application, source)
        elif target == PLAYGROUND_IMPORT:
            self._check_playground(application, source)
        elif target is not None:
            name = application.get("name", "default")
            self._report.checked.append(f"{source.file}: {name}: {target} (Ray's schema only)")

    def _check_unique(self, application: dict[str, Any], source: Source) -> None:
        for key, default, taken in (
            ("name", "default", self._names),
            ("route_prefix", "/", self._prefixes),
        ):
            value = application.get(key, default)
            if not isinstance(value, str):
                continue
            here = source.at(key)
            first = taken.setdefault(value, here)
            if first != here:
                message = f"{value!r} is given twice, first at {first}"
                self._report.add([Fault(here, message, "every application needs its own")])

    def _check_model_application(self, application: dict[str, Any], source: Source) -> None:
        report = self._report
        report.add(check_model_name(application, source))
        args, at = application.get("args", {}), source.under("args")
        if not isinstance(args, dict):
            return  # Ray's schema says so
        faults = check_model_args(args, at)
        report.add([*faults, *parse(CorsSection, args.get("cors", {}), at.under("cors"))[1]])
        auth, wrong, _ = parse(AuthArgs, {"auth": args.get("auth")}, at)
        report.add(wrong)
        if auth is not None and not wrong:
            self._keys.add(str(application.get("name", "")), auth.auth, at)
        if faults:
            return
        args = without_service_keys(args)
        name = str(application.get("name", ""))
        environment = application.get("runtime_env") or {}
        remote = isinstance(environment, dict) and bool(
            {"working_dir", "py_modules"} & {*environment}
        )
        if "config" in args:
            try:
                args, at = read_named_file(config_path(args["config"], at), at.at("config"))
            except ConfigError as error:
                report.add(error.faults)
                return
        config = check_model_data(
            report,
            args,
            at,
            name,
            remote_code=remote,
            deployment=find_deployment(application, MODEL_DEPLOYMENT),
        )
        if config is not None:
            report.add(in_file_order(check_overrides(application, source, config), source))

    def _check_router(self, application: dict[str, Any], source: Source) -> None:
        report, args = self._report, source.under("args")
        self._routers.append(source)
        data = application.get("args", {})
        config, faults = _parse(RouterConfig, data, args)
        faults += check_router_place(application, source)
        if len(self._routers) > 1:
            message = f"is a second router; the first is {self._routers[0].at()}"
            faults.append(Fault(source.at(), message, "remove one"))
        if config is None:
            report.add(faults)
            return
        if not any(".auth" in fault.place for fault in faults):
            self._keys.add(str(application.get("name", "router")), config.auth, args)
        faults += self._check_port(config, args)
        faults += check_request_time(config.request_timeout_s, args, "request_timeout_s")
        faults += check_overrides(application, source, config)
        report.add(in_file_order(faults, source), source)
        deployment = find_deployment(application, ROUTER_DEPLOYMENT)
        report.routers.append(Checked(config, args, deployment))
        if not faults:
            report.checked.append(f"{source.file}: {application.get('name')}: the router")

    def _check_playground(self, application: dict[str, Any], source: Source) -> None:
        report, args = self._report, source.under("args")
        data = application.get("args", {})
        config, faults = _parse(PlaygroundConfig, data, args)
        faults += check_playground_place(application, source)
        if config is not None:
            faults += check_overrides(application, source, config)
            deployment = find_deployment(application, PLAYGROUND_DEPLOYMENT)
            report.playgrounds.append(Checked(config, args, deployment))
        report.add(in_file_order(faults, source), source)
        if not faults:
            report.checked.append(f"{source.file}: {application.get('name')}: the playground")

    def _check_port(self, config: RouterConfig, args: Source) -> list[Fault]:
        options = self._data.get("http_options")
        port = options.get("port", DEFAULT_PORT) if isinstance(options, dict) else DEFAULT_PORT
        if not isinstance(port, int) or config.proxy_port in (None, port):
            return []
        message = f"{config.proxy_port} is not http_options.port, which is {port}"
        return [Fault(args.at("proxy_port"), message, f"write proxy_port: {port}")]

    def _check_further_names(self) -> None:
        """Adapters and aliases share one namespace with the models, in whatever order they come."""
        taken = {name: ("", place) for name, place in self._names.items()}
        for kind in ("adapter", "alias"):
            for model in self._report.models:
                for name, here in _further_names(model, kind):
                    other, first = taken.setdefault(name, (str(model.name), here))
                    if other == str(model.name):
                        continue  # itself, or what the check of the model reports
                    message = f"{name!r} is already a model name at {first}"
                    message += f" (application {other})" if other else ""
                    fix = f"clients choose by it: give the {kind} a name of its own"
                    self._report.add([Fault(here, message, fix)], model.place)


def _further_names(model: CheckedModel, kind: str) -> list[tuple[str, str]]:
    """Returns a model's adapters or aliases, and where each is given."""
    serving, place = model.config.serving, model.place.under("serving")
    if kind == "alias":
        return [(name, place.at("aliases", at)) for at, name in enumerate(serving.aliases)]
    return [
        (adapter.name, place.at("adapters", at, "name"))
        for at, adapter in enumerate(serving.adapters)
    ]
