"""What Ray keeps of a model's processes on this machine: their output, and how they died."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from truthgpt_serve.cli._service.address import RUN_FOLDER, Address, root
from truthgpt_serve.cluster.environment_file import ENVIRONMENT_FILE, read_exports
from truthgpt_serve.cluster.private_files import LINK, RAY_FOLDER_VARIABLE
from truthgpt_serve.cluster.processes import read_arguments
from truthgpt_serve.cluster.service.service_log import NAME as SERVICE_LOG
from truthgpt_serve.terminal import clean

HEAD_BYTES = 1024
"""Ray writes whose output a file has at its beginning."""
MAX_TAIL_BYTES = 4 << 20
_PID = re.compile(r"-(\d+)\.(?:out|err)$")
_RAYS_OWN = (":job_id:", ":actor_name:", ":task_name:")


@dataclass(frozen=True, slots=True)
class Replica:
    """The output of one process of a model.

    Attributes:
        pid: The process.
        files: What it and those that it started wrote.
        written_s: When the last line was, seconds since the epoch.
        lives: Whether it is there now.
    """

    pid: int
    files: tuple[Path, ...]
    written_s: float
    lives: bool


@dataclass(frozen=True, slots=True)
class Session:
    """One run of Ray on this machine.

    Attributes:
        folder: Its folder.
        run_folder: The folder of `make serve` that it belongs to, or None.
    """

    folder: Path
    run_folder: Path | None = None

    def replicas(self, model: str) -> list[Replica]:
        """Returns the processes of a model, the one that wrote last at the end.

        Raises:
            PermissionError: It is another user's.
        """
        mark = f":actor_name:ServeReplica:{model}:".encode()
        files: dict[tuple[str, int], list[Path]] = {}
        for path in sorted((self.folder / "logs").glob("worker-*")):
            if (match := _PID.search(path.name)) is not None:
                files.setdefault((path.stem, int(match[1])), []).append(path)
        # What a process that it started has printed first may push the mark out of one's beginning.
        found = [
            _replica(model, pid, paths)
            for (_, pid), paths in files.items()
            if any(mark in _head(path) for path in paths)
        ]
        return sorted(found, key=lambda replica: replica.written_s)

    def serve_logs(self, model: str) -> list[Path]:
        """Returns what Ray Serve logged in the model's replicas, the latest last: `print` too."""
        return self._find_logs(rf"replica_{re.escape(model)}_ModelReplica_\w+\.log")

    def builds(self, model: str) -> list[Path]:
        """Returns the logs of building the model's application, the latest last."""
        return self._find_logs(rf"controller_build_{re.escape(model)}_\d+\.log")

    def _find_logs(self, name: str) -> list[Path]:
        folder = self.folder / "logs" / "serve"
        found = [path for path in folder.glob("*.log") if re.fullmatch(name, path.name)]
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def deaths(self, model: str) -> list[str]:
        """Returns why processes of the model died, the latest last."""
        path = self.folder / "truthgpt-deaths" / quote(model, safe="") / "history.json"
        try:
            deaths = json.loads(path.read_text())["deaths"]
            return [str(death["cause"]) for death in deaths]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def find_session(
    address: Address, *, earlier: bool, environ: Mapping[str, str] = os.environ
) -> Session | None:
    """Returns the run of Ray on this machine that the service belongs to; None elsewhere.

    Args:
        address: Where the service is.
        earlier: Whether the last run of `make serve` counts too, although it does not run now.
        environ: The environment, which names Ray's folder where it was started by hand.
    """
    if not address.is_loopback:
        return None
    candidates: list[tuple[Path, Path | None]] = []
    if address.run_folder is not None:
        candidates.append((_ray_folder(address.run_folder), address.run_folder))
    elif by_hand := environ.get(RAY_FOLDER_VARIABLE):
        candidates.append((Path(by_hand), None))
    if earlier:
        candidates += [
            (_ray_folder(each), each) for each in (Path(RUN_FOLDER), root() / RUN_FOLDER)
        ]
    for base, run_folder in candidates:
        folder = base / "ray" / "session_latest"
        if _is_folder(folder):
            return Session(folder, run_folder)
    return None


def _ray_folder(run_folder: Path) -> Path:
    """Returns where a run has Ray's files: its private folder, unless the user has named one."""
    link = run_folder / LINK
    named = read_exports(run_folder / ENVIRONMENT_FILE).get(RAY_FOLDER_VARIABLE)
    return Path(named) if named and Path(named).resolve() != link.resolve() else link


def service_log(run_folder: Path | None) -> Path | None:
    """Returns the log of the whole service, or None."""
    path = None if run_folder is None else run_folder / SERVICE_LOG
    return path if path is not None and path.is_file() else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # another user's
        return False


def _replica(model: str, pid: int, paths: list[Path]) -> Replica:
    title = " ".join(read_arguments(pid))
    lives = title.startswith(f"ray::ServeReplica:{model}:")
    return Replica(pid, tuple(paths), max(path.stat().st_mtime for path in paths), lives)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except FileNotFoundError:
        return b""


def clean_line(line: str) -> str | None:
    """Returns a line as a terminal may show it; None for Ray's own marks."""
    if line.startswith(_RAYS_OWN):
        return None
    return clean(line).rstrip()


def tail(path: Path, num_lines: int) -> tuple[list[str], int]:
    """Returns the last lines of a file, and the position behind them.

    Args:
        path: The file.
        num_lines: How many at most; of a file of long lines fewer, because 4 MiB are read.
    """
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - MAX_TAIL_BYTES)
        file.seek(start)
        data = file.read(end - start)
    if start:
        data = data.partition(b"\n")[2]
    lines = filter(None, map(clean_line, data.decode(errors="replace").splitlines()))
    return list(lines)[-num_lines:] if num_lines else [], end


class Follower:
    """Reads what is added to a file.

    Args:
        path: The file.
        position: Where to begin.
    """

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path = path
        self._position = position
        self._rest = b""

    def read(self) -> Iterator[str]:
        """Yields the lines that are complete by now; a file that was made shorter begins anew."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                data = file.read(MAX_TAIL_BYTES)
                self._position = file.tell()
        except FileNotFoundError:
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-MAX_TAIL_BYTES:]
        for line in lines:
            if shown := clean_line(line.decode(errors="replace")):
                yield shown
