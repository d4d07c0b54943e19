"""Applies a Serve file to the service that runs, as `serve deploy` does, and waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from truthgpt_serve.cli._serving.marks import FAILED, mark_changed, name_of
from truthgpt_serve.cli._serving.service import Service

READY_TIMEOUT_S = 600.0
POLL_S = 1.0
_ENDED = (FAILED, "UNHEALTHY")

Say = Callable[[str], None]


def check_same(service: Service, serve: Path, adding: str) -> None:
    """Checks that a service runs what a Serve file says, before the file is changed.

    Args:
        service: The service.
        serve: The file.
        adding: The application that may be added.

    Raises:
        click.ClickException: It does not answer, or has applications that the file has not.
    """
    found = _others(service.applications(), _read(serve))
    if others := [name for name in found if name != adding]:
        raise click.ClickException(
            f"the service runs another Serve file: it has {', '.join(others)}, which {serve} has "
            "not (name the file that it runs with --serve-file)"
        )


def deploy(service: Service, serve: Path, application: str, say: Say) -> None:
    """Applies a Serve file, and waits until one application of it runs.

    Args:
        service: What takes it.
        serve: The file.
        application: Name of the application that is waited for.
        say: Prints a line.

    Raises:
        click.ClickException: The service refuses, or the model does not start.
    """
    config = _read(serve)
    mark_changed(config, service.applications())
    service.apply(config)
    say(f"applied {serve}; waiting for {application}")
    failed, starting = wait(service, [application], READY_TIMEOUT_S, say)
    if failed:
        raise click.ClickException(failed[0])
    if starting:
        say(starting[0])


def deploy_all(
    service: Service, serve: Path, again: Collection[str], timeout_s: float, say: Say
) -> list[str]:
    """Applies a Serve file, and waits for all its applications.

    Args:
        service: What takes it.
        serve: The file, without a fault.
        again: Applications to load again whatever has changed.
        timeout_s: How long is waited.
        say: Prints a line.

    Returns:
        A line for each application that does not run.

    Raises:
        click.ClickException: The service does not answer or refuses.
        click.UsageError: The file is a model's, or has no application of a name.
    """
    config = _read(serve)
    if "applications" not in config:
        raise click.UsageError(f"{serve} is a model's file: name a Serve file, which names it")
    details = service.read()
    running = details.get("applications") or {}
    names = [name_of(entry) for entry in config["applications"]]
    if unknown := [name for name in again if name not in names]:
        raise click.UsageError(f"{serve} has no application {unknown[0]!r}: {', '.join(names)}")
    for name, reason in mark_changed(config, running, again).items():
        say(f"{name} is loaded again: {reason}")
    for name in names:
        if name not in running:
            say(f"{name} is new")
    for name in _others(running, config):
        say(f"{name} is taken out")
    _say_what_stays(config, details, say)
    service.apply(config)
    say(f"applied {serve}; waiting for {', '.join(names)}")
    failed, starting = wait(service, names, timeout_s, say)
    return [*failed, *starting]


def _say_what_stays(config: Mapping[str, Any], details: Mapping[str, Any], say: Say) -> None:
    """Says which settings Ray Serve takes from a file at its start only."""
    given, used = _fixed_settings(config), _fixed_settings(details)
    for key in sorted(given.keys() & used.keys()):
        if given[key] is not None and given[key] != used[key]:
            stays = "unset" if used[key] in (None, "") else used[key]
            say(f"{key} stays {stays} until the service is started again")


def _fixed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    http = config.get("http_options") or {}
    found = {f"http_options.{key}": value for key, value in http.items()}
    return found | {key: config[key] for key in ("proxy_location",) if key in config}


def wait(
    service: Service, applications: Collection[str], timeout_s: float, say: Say
) -> tuple[list[str], list[str]]:
    """Waits until applications run or have failed, and says which run.

    Args:
        service: The service.
        applications: Their names.
        timeout_s: How long is waited.
        say: Prints a line.

    Returns:
        A line for each that has failed, and for each that is still starting.
    """
    failed: dict[str, str] = {}
    waiting = list(applications)
    deadline = time.monotonic() + timeout_s
    while waiting and time.monotonic() < deadline:
        time.sleep(POLL_S)
        try:
            running = service.applications()
        except click.ClickException:  # busy for a moment: what is applied stays so
            continue
        for name in tuple(waiting):
            found = running.get(name) or {}
            if found.get("status") == "RUNNING":
                say(f"{name} runs")
            elif found.get("status") in _ENDED:
                said = " ".join(str(found.get("message")).split())[:500]
                failed[name] = f"{name} does not start ({said}); `truthgpt why {name}` says more"
            else:
                continue
            waiting.remove(name)
    starting = [
        f"{name} is still starting: `truthgpt why {name}` says what it waits for"
        for name in waiting
    ]
    return list(failed.values()), starting


def _read(serve: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(serve.read_text(encoding="utf-8"))
    return found


def _others(running: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    names = {name_of(entry) for entry in config["applications"]}
    return sorted(set(running) - names)
