"""Ray's worker program, without pandas where Ray Serve imports it; the raylet runs this file.

It imports nothing but the standard library before Ray's own program, as that does.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

USER = "ray.serve._private.utils"
"""The module of Ray Serve that imports pandas where it is, to answer with data frames."""
WORKER = ("_private", "workers", "default_worker.py")


class PandasLeftOut:
    """A finder of modules that has Ray Serve imported as on a machine without pandas.

    Everybody else imports pandas as ever. It takes 33 MB in each process of Ray Serve.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds Ray Serve's module, to be run while pandas cannot be imported."""
        spec = PathFinder.find_spec(name, path, target) if name == USER else None
        if spec is None or spec.loader is None or "pandas" in sys.modules:
            return None
        run = spec.loader.exec_module

        def run_without_pandas(module: ModuleType) -> None:
            sys.modules["pandas"] = None  # type: ignore[assignment]  # an import of it fails
            try:
                run(module)
            finally:
                del sys.modules["pandas"]

        spec.loader.exec_module = run_without_pandas  # type: ignore[method-assign]
        return spec


def leave_out_pandas() -> None:
    """Has this process import Ray Serve without pandas; call it before Ray Serve is imported."""
    if not any(isinstance(finder, PandasLeftOut) for finder in sys.meta_path):
        sys.meta_path.insert(0, PandasLeftOut())


def find_worker() -> Path:
    """Returns Ray's own worker program.

    Raises:
        FileNotFoundError: Ray is not installed, or has it somewhere else.
    """
    spec = find_spec("ray")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder, *WORKER)
        if path.is_file():
            return path
    raise FileNotFoundError(f"Ray has no {'/'.join(WORKER)}: adapt {__file__} to this release")


def main() -> None:
    """Runs Ray's worker program in place of this one, or has a copy that is loaded do so."""
    from truthgpt_serve.cluster.service.fork_client import SERVER_OPTION, ask_for_copy

    serves = sys.argv[1:2] == [SERVER_OPTION]
    if not serves and ask_for_copy(sys.argv):
        return
    leave_out_pandas()
    worker = find_worker()
    own = str(Path(__file__).parent)
    with suppress(ValueError):  # with -P it is not there
        sys.path[sys.path.index(own)] = str(worker.parent)
    if serves and not _become_worker():
        return
    sys.argv[0] = str(worker)
    runpy.run_path(str(worker), run_name="__main__")


def _become_worker() -> bool:
    """Forks the raylet's workers; returns True in each of them, and False at the end."""
    from truthgpt_serve.cluster.service import fork_server

    listener, raylet = sys.argv[2:4]
    request = fork_server.run(int(listener), int(raylet))
    if request is None:
        return False
    sys.argv = request.arguments
    return True


if __name__ == "__main__":
    main()
