"""Which models are loaded again although their entries in the Serve file are as before.

Ray compares entries, and a model's own file (`config:`) is not in its entry. A variable in the
entry's `runtime_env` changes with the file instead.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from truthgpt_serve.config.load import config_path
from truthgpt_serve.config.paths import find_config
from truthgpt_serve.config.source import Source
from truthgpt_serve.validate.applications import MODEL_IMPORT, import_target

VARIABLE = "TRUTHGPT_MODEL_FILE_VERSION"
FAILED = "DEPLOY_FAILED"
_AGAIN = "."
"""Between a file's version and what makes it another one."""

Entry = dict[str, Any]
Applications = Mapping[str, Mapping[str, Any]]
"""What Ray says of each application, by its name."""


def mark_changed(
    config: Mapping[str, Any], running: Applications, again: Collection[str] = ()
) -> dict[str, str]:
    """Marks the applications of a Serve file that shall be loaded again.

    They are those whose file has changed, and those that have failed: what was wrong may be mended
    elsewhere. Others keep the marks that they have.

    Args:
        config: The file's content, which is changed.
        running: What runs.
        again: Applications to load again whatever has changed.

    Returns:
        Why each of them is, by its name.

    Raises:
        ConfigError: A model's file is not there.
        OSError: It cannot be read.
    """
    reasons = {}
    for entry in config["applications"]:
        name = name_of(entry)
        if name not in running:
            continue
        before = _mark_of(running[name].get("deployed_app_config") or {})
        has_failed = running[name].get("status") == FAILED
        mark = _next_mark(entry, running[name], before, again=name in again or has_failed)
        if mark != before:
            known = "it had failed" if has_failed else "its file has changed"
            reasons[name] = "as asked" if name in again else known
        if mark:
            given = entry.get("runtime_env") or {}
            variables = {**(given.get("env_vars") or {}), VARIABLE: mark}
            entry["runtime_env"] = {**given, "env_vars": variables}
    return reasons


def name_of(entry: Mapping[str, Any]) -> str:
    """Returns the name of an application; Ray has one for those that are not ours."""
    return str(entry.get("name", "default"))


def _next_mark(entry: Entry, running: Mapping[str, Any], before: str, *, again: bool) -> str:
    file = _model_file(entry)
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file else ""
    if again:
        return f"{version}{_AGAIN}{secrets.token_hex(4)}"
    if file is None or before.partition(_AGAIN)[0] == version:
        return before
    return version if before or _is_newer(file, running) else ""


def _mark_of(entry: Mapping[str, Any]) -> str:
    variables = (entry.get("runtime_env") or {}).get("env_vars") or {}
    return str(variables.get(VARIABLE, ""))


def _model_file(entry: Entry) -> Path | None:
    args = entry.get("args") or {}
    if import_target(entry.get("import_path")) != MODEL_IMPORT or "config" not in args:
        return None
    return find_config(config_path(args["config"], Source(name_of(entry))))


def _is_newer(file: Path, running: Mapping[str, Any]) -> bool:
    """Returns whether a file was written after a replica started, or none runs."""
    deployments = (running.get("deployments") or {}).values()
    starts = [
        replica["start_time_s"]
        for deployment in deployments
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    ]
    return not starts or file.stat().st_mtime > min(starts)
