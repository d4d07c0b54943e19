"""Which tests of a running service are one piece of work for pytest-xdist, and when they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.shell import forget_what_libraries_set

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Lets services start as from a shell, whatever other tests have imported before."""
    forget_what_libraries_set()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a module to one process, and the modules of a subfolder, which share a cluster, too.

    Tests with a service wait much, the others compute. While there are both, a process of three
    has the others.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByCluster(LoadFileScheduling):  # type: ignore[misc]  # its base has no types
        def _split_scope(self, nodeid: str) -> str:
            module = super()._split_scope(nodeid)
            folder = (config.rootpath / module).parent
            return module if HERE not in folder.parents else str(folder)

        def _assign_work_unit(self, node: Any) -> None:
            works = [work for each, work in self.assigned_work.items() if each is not node]
            num_services = sum(any(map(self._has_service, open_of(work))) for work in works)
            wanted = 3 * num_services < 2 * (1 + len(works))
            fitting = (scope for scope in self.workqueue if self._has_service(scope) == wanted)
            if (scope := next(fitting, None)) is not None:
                self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

        def _has_service(self, scope: str) -> bool:
            return HERE in (config.rootpath / scope).parents

    return ByCluster(config, log)


def open_of(work: Mapping[str, Mapping[str, bool]]) -> list[str]:
    """Returns which modules and folders of a process's work have tests that have not ended."""
    return [scope for scope, tests in work.items() if not all(tests.values())]
