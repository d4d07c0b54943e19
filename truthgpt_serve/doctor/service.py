"""What the service around the models needs: HAProxy, Ray's settings, the hub, disk, ports.

Each probe runs the program, opens the port or asks the Hub.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.cluster.environment_file import read_environment_file
from truthgpt_serve.cluster.haproxy.program import BINARY_VARIABLE, program_path
from truthgpt_serve.config.paths import config_dir, expand
from truthgpt_serve.contract import Probe

TIMEOUT_S = 10.0
HUB_TIMEOUT_S = 5.0
LEAST_FREE_BYTES = 10 << 30
"""Below this a model of a few billion parameters does not fit."""
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "true", "yes")


def probe_haproxy() -> Probe:
    """Whether Ray's HAProxy starts, through the program that the service gives to Ray."""

    def call() -> str:
        done = subprocess.run(
            [program_path(), "-v"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        return done.stdout

    fix = "make install; without it requests go through Ray's slower Python proxy"
    return Probe.attempt("HAProxy", call, fix)


def probe_ray_settings(environ: Mapping[str, str] = os.environ) -> Probe:
    """Whether the settings of `ray.env` are those of this shell."""
    path = config_dir(environ) / "ray.env"
    if not path.is_file():
        fix = "run it where configs/ is, or set TRUTHGPT_CONFIG_DIR"
        return Probe("Ray's settings", False, f"there is no {path}", fix)
    wanted = read_environment_file(path)
    others = {
        name: environ[name] for name in wanted if environ.get(name, "") not in ("", wanted[name])
    }
    missing = [name for name in wanted if name not in environ]
    fix = 'eval "$(truthgpt environment .run)" (`make serve` does it by itself)'
    if missing:
        detail = f"{len(missing)} of {len(wanted)} settings of {path} are not in this shell"
        return Probe("Ray's settings", False, detail, fix)
    if others:
        shown = ", ".join(f"{name}={value}" for name, value in others.items())
        return Probe("Ray's settings", True, f"in effect, with your own {shown}")
    binary = environ.get(BINARY_VARIABLE)
    note = "" if binary else f"; {BINARY_VARIABLE} is not set: see the README for `serve run`"
    return Probe("Ray's settings", True, f"all {len(wanted)} of {path} are in effect{note}")


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether models are never downloaded."""
    return any(environ.get(name, "").lower() in _TRUE for name in OFFLINE_VARIABLES)


def probe_hub(environ: Mapping[str, str] = os.environ) -> Probe:
    """Whether models can be downloaded: asks the hub."""
    if is_offline(environ):
        fix = f"unset {' and '.join(OFFLINE_VARIABLES)} to download models"
        return Probe("model hub", False, "switched off: only local and cached models load", fix)
    address = environ.get("HF_ENDPOINT") or "https://huggingface.co"

    def call() -> str:
        request = urllib.request.Request(address, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:
                status = answer.status
        except urllib.error.HTTPError as error:  # it answers, though not this path
            status = error.code
        return f"{address} answers ({status})"

    fix = "check the network or HF_ENDPOINT; local folders and cached models work without"
    return Probe.attempt("model hub", call, fix)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns where downloaded models are kept, by the hub's own variables."""
    if given := environ.get("HF_HUB_CACHE"):
        return expand(given)
    home = environ.get("HF_HOME") or f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return expand(home) / "hub"


def probe_disk(environ: Mapping[str, str] = os.environ) -> Probe:
    """Whether the cache of models can be written, and has room."""
    folder = cache_folder(environ)
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / (1 << 30):.1f} GiB free at {folder}"
    fix = "free some, or set HF_HOME to a larger disk"
    if free < LEAST_FREE_BYTES:
        return Probe("model cache", False, detail, fix)

    def call() -> str:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
        return detail

    return Probe.attempt("model cache", call, fix)


def probe_port(port: int = DEFAULT_PORT, host: str = "127.0.0.1") -> Probe:
    """Whether the service can listen, or does already."""
    name = f"port {port}"
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if _is_this_service(port):
                return Probe(name, True, "this service listens there already")
            fix = "end what listens there, or set http_options.port in the Serve file"
            return Probe(name, False, f"cannot be opened: {error.strerror}", fix)
    return Probe(name, True, "free")


def _is_this_service(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(json.load(answer) == {"status": "ok"})
    except (OSError, ValueError):
        return False


def probe_service(port: int = DEFAULT_PORT) -> Iterator[Probe]:
    """Yields all of them."""
    yield probe_haproxy()
    yield probe_ray_settings()
    yield probe_hub()
    yield probe_disk()
    yield probe_port(port)
