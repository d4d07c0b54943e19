"""Which tests of a running service are one piece of work for pytest-xdist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a module to one process, and the modules of a subfolder, which share a cluster, too."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByCluster(LoadFileScheduling):  # type: ignore[misc]  # its base has no types
        def _split_scope(self, nodeid: str) -> str:
            module = super()._split_scope(nodeid)
            folder = (config.rootpath / module).parent
            return module if HERE not in folder.parents else str(folder)

    return ByCluster(config, log)
