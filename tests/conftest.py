"""What all tests share: no network, and a time limit that fits the folder.

Knows nothing of Ray; the fixtures that start a cluster are in tests/serve.
"""

from __future__ import annotations

import gc
import importlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

# A busy machine is no fault of what is tested; pytest's own limit ends what hangs.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns whenever a test forks

# Threads that wait for each other on a busy machine take many times as long as one: torch's wait by
# spinning. What a test says of threads itself counts more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Else each process that compiles a model first tries the C++ compiler with every instruction set
# that the CPU has, 6 to 14 s of a core.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
importlib.import_module("tests.support.shell")  # it keeps the variables as they are now

ROOT = Path(__file__).resolve().parent.parent
COUNTS = Path(tempfile.gettempdir(), f"truthgpt-quota-{os.geteuid()}")
FORMER_COUNTS = pytest.StashKey[set[Path]]()
UNIT_TIMEOUT_S = 180
SERVE_TIMEOUT_S = 600
"""A test's limit includes its module's cluster, which starts in 10 to 40 s on two cores, and takes
several times that on a busy machine."""
LONGEST = (
    "serve/plain_cluster",
    "serve/model_cluster",
    "serve/test_training.py",
    "serve/two_engines",
    "serve/whole_service",
    "serve/test_restarts.py",
    "serve/test_keys.py",
    "serve/test_readme.py",
    "serve/test_ports.py",
    "serve/adapted_engine",
    "serve/test_supervision.py",
    "unit/families/hf_transformers/generation/test_model.py",
    "unit/scripts/shipped/test_models.py",
    "unit/training/text/test_sft.py",
    "unit/families/hf_diffusers/pipelines/test_optimization.py",
    "unit/training/images/test_loop.py",
    "unit/training/test_trackers.py",
    "unit/grammar/test_gate.py",
    "unit/families/hf_diffusers/test_correctness.py",
    "unit/families/hf_diffusers/test_deployment.py",
    "unit/doctor/test_engines.py",
    "unit/scripts/shipped/test_starting_models.py",
)
"""Modules, and folders that share a cluster, of more than 75 s of CPU; in tests/unit of 25 s."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports the test modules without garbage collection, and leaves what they hold out of later.

    Torch, transformers and an engine make 600,000 objects. To look through them takes 0.3 s each
    time, and accelerate does so at each start of a training.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Notes which counts of keys lie in the folder for temporary files already."""
    config.stash[FORMER_COUNTS] = set(COUNTS.glob("*"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Lets what the modules hold be freed at the end, which some compiled libraries look at.

    Removes the counts that tests have left, 42 MB for each file of keys, once all of them are done.
    """
    gc.unfreeze()
    if not hasattr(config, "workerinput"):
        former = config.stash.get(FORMER_COUNTS, None) or set()
        for file in set(COUNTS.glob("*")) - former:
            file.unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs a cluster, and gives it more time; puts the longest modules first.

    So no process of pytest-xdist, which has one at a time, is left alone with a long one.
    """
    ranks = {ROOT / "tests" / name: rank for rank, name in enumerate(LONGEST)}
    last = len(LONGEST)
    items.sort(key=lambda item: ranks.get(item.path, ranks.get(item.path.parent, last)))
    for item in items:
        is_serve = (ROOT / "tests" / "serve") in item.path.parents
        if is_serve:
            item.add_marker(pytest.mark.serve)
        if item.get_closest_marker("timeout") is None:
            limit = SERVE_TIMEOUT_S if is_serve else UNIT_TIMEOUT_S
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT
