"""Ray's worker program, with some modules of Ray Serve changed; the raylet runs this file.

Ray Serve comes without pandas, its manager of HAProxy starts that again when it dies, and HAProxy
outlives its manager.

It imports nothing but the standard library before Ray's own program, as that does.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

USER = "ray.serve._private.utils"
"""The module of Ray Serve that imports pandas where it is, to answer with data frames."""
HAPROXY = "ray.serve._private.haproxy"
"""The module of Ray Serve that starts HAProxy."""
WORKER = ("_private", "workers", "default_worker.py")

Run = Callable[[ModuleType], None]


class ChangedImports:
    """A finder of modules that has Ray Serve's come as the service needs them.

    Everybody else imports pandas as ever. It takes 33 MB in each process of Ray Serve.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module that is run otherwise than by itself; None for all others."""
        change = _CHANGES.get(name)
        spec = PathFinder.find_spec(name, path, target) if change is not None else None
        if change is None or spec is None or spec.loader is None:
            return None
        spec.loader.exec_module = partial(  # type: ignore[method-assign]
            change, spec.loader.exec_module
        )
        return spec


def _run_without_pandas(run: Run, module: ModuleType) -> None:
    """Has Ray Serve imported as on a machine without pandas."""
    if "pandas" in sys.modules:
        run(module)
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        run(module)
    finally:
        del sys.modules["pandas"]


def _run_with_restarts(run: Run, module: ModuleType) -> None:
    """Has a dead HAProxy started again by its manager, and one that outlives it taken over."""
    from truthgpt_serve.cluster.haproxy.manager.restarts import restart_at_once

    run(module)
    try:
        restart_at_once(module.HAProxyApi)
    except AttributeError as error:
        sys.stderr.write(f"Ray Serve replaces HAProxy and its manager by itself: {error}\n")


_CHANGES: dict[str, Callable[[Run, ModuleType], None]] = {
    USER: _run_without_pandas,
    HAPROXY: _run_with_restarts,
}


def change_imports() -> None:
    """Has this process import Ray Serve with the changes; call it before Ray Serve is imported."""
    if not any(isinstance(finder, ChangedImports) for finder in sys.meta_path):
        sys.meta_path.insert(0, ChangedImports())


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
    change_imports()
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
