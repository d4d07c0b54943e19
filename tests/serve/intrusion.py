"""A running service in a network of its own, and a stranger who tries what there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serve.listeners import Listener, find_listeners
from tests.serve.shell import STOP_S, Shell, open_shell
from tests.serve.two_nodes import Network
from truthgpt_serve.cluster.private_files import LINK

INTRUDER = Path(__file__).with_name("intruder.py")
HOST = 1
NOBODY = 65534
INTRUDER_S = 300
LISTENING_S = 60
USUAL_PORTS = [6379, 8265, 8404, 8500, 9101, 10001, 44217, 44227, 52365, *range(30000, 30010)]
"""Those that Ray and HAProxy take where nothing else is said."""


@dataclass(frozen=True)
class Scene:
    """A running service, and the network around it."""

    shell: Shell
    network: Network
    folder: Path

    @property
    def private(self) -> Path:
        return (self.shell.folder / LINK).readlink()

    def listeners(self) -> list[Listener]:
        """Returns all; while HAProxy is being replaced, one look may miss the old and the new."""
        deadline = time.monotonic() + LISTENING_S
        while True:
            found = find_listeners(self.shell.run_id)
            if any(each.port == self.shell.port for each in found) or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def intrude(self, *words: str, **targets: Any) -> tuple[dict[str, Any], bool]:
        """Runs the intruder; returns what it reached, and whether its command was run."""
        trophy = self.folder / "trophy"
        trophy.unlink(missing_ok=True)
        listeners = self.listeners()
        everything = {
            "address": "127.0.0.1",
            "ports": sorted({each.port for each in listeners if each.port} | set(USUAL_PORTS)),
            "unpickle": [each.port for each in listeners if "ServeReplica" in each.title],
            "dashboards": [each.port for each in listeners if "dashboard" in each.title.lower()],
            "sockets": [each.address for each in listeners if each.kind == "unix"],
            "files": [],
            "open": [self.shell.port],
            "command": f"touch {trophy}",
            **targets,
        }
        orders = self.folder / "orders.json"
        orders.write_text(json.dumps(everything))
        orders.chmod(0o644)
        done = subprocess.run(
            [*words, sys.executable, str(INTRUDER), str(orders)],
            env={"PATH": os.environ["PATH"]},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=INTRUDER_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), trophy.exists()


@contextmanager
def scene(
    folder: Path, number: int, config: dict[str, Any], host: str, **env: str
) -> Iterator[Scene]:
    with ExitStack() as stack:
        network = stack.enter_context(Network(number))
        shell = stack.enter_context(
            open_shell(folder, config, host=host, prefix=network.prefix(HOST), env=env)
        )
        # Not below pytest's own folder, which it keeps to this user.
        public = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tg")))
        public.chmod(0o777)
        service = shell.start()
        yield Scene(shell, network, public)
        assert shell.run("stop").returncode == 0
        service.wait(STOP_S)


def in_namespace(network: Network) -> tuple[str, ...]:
    """Returns the words that run a command beside the service as a user without rights."""
    user = str(NOBODY)
    return (*network.prefix(HOST), "setpriv", "--reuid", user, "--regid", user, "--clear-groups")
