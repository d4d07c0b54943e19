"""What the process that becomes Ray's workers imports, and what a copy of it has to do anew.

The one file that knows what of Ray and NumPy does not survive a fork.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODULES = (
    "ray.serve",
    "ray.serve._private.replica",
    "grpc.aio",
    "opentelemetry.exporter.prometheus",
    "opentelemetry.sdk.metrics",
    "requests",
    "uvicorn",
    "truthgpt_serve.app",
    "truthgpt_serve.router.app",
    "truthgpt_serve.server",
)
"""What most workers import."""
_BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"
_THREADS_VARIABLE = "OMP_NUM_THREADS"
_SET_THREADS = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads")


def load() -> bool:
    """Imports what workers need, and takes it out of what garbage collection looks at.

    Returns:
        Whether a copy is as good as a new process: not when an import failed, or started a thread,
        which a copy would not have.
    """
    try:
        with _drawn_by_the_system(), _one_thread():
            for name in MODULES:
                with suppress(ModuleNotFoundError):
                    importlib.import_module(name)
    except Exception as error:
        sys.stderr.write(f"Ray's workers start by themselves: {error}\n")
        return False
    if len(os.listdir("/proc/self/task")) != 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        sys.stderr.write(f"Ray's workers start by themselves: threads run ({names})\n")
        return False
    if not _draws_anew():
        sys.stderr.write("Ray's workers start by themselves: an import drew a random number\n")
        return False
    for found in gc.get_objects():  # as Python does for its own: aiohttp has one
        if issubclass(type(found), random.Random):
            os.register_at_fork(after_in_child=found.seed)
    gc.collect()
    gc.freeze()
    return True


@contextmanager
def _drawn_by_the_system() -> Iterator[None]:
    """Has ids of actor classes drawn by the system meanwhile.

    Ray's own generator, which names workers and objects too, would go on alike in all copies once
    it was asked. A class that is imported here has the same id in all copies: it is the same class.
    """
    actor = importlib.import_module("ray.actor")
    made: Any = actor.ActorClassID
    drawing = SimpleNamespace(from_random=lambda: made(os.urandom(made.size())))
    setattr(actor, "ActorClassID", drawing)  # noqa: B010  # mypy knows no such attribute
    try:
        yield
    finally:
        setattr(actor, "ActorClassID", made)  # noqa: B010


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has NumPy start no thread meanwhile; see `_use_threads`."""
    before = os.environ.get(_BLAS_VARIABLE)
    os.environ[_BLAS_VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_BLAS_VARIABLE)
        if before is not None:
            os.environ[_BLAS_VARIABLE] = before


def _draws_anew() -> bool:
    """Returns whether Ray names things differently in two copies of this process."""
    drawn = set()
    for _ in range(2):
        reader, writer = os.pipe()
        copy = os.fork()
        if copy == 0:
            try:
                ray = importlib.import_module("ray")
                os.write(writer, ray.WorkerID.from_random().binary())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as file:
            drawn.add(file.read())
        os.waitpid(copy, 0)
    return len(drawn) == 2 and b"" not in drawn


def renew() -> None:
    """Does in a copy what each process does for itself when it imports these modules."""
    utils = importlib.import_module("ray._private.utils")
    set_variable = utils.set_omp_num_threads_if_unset

    def set_variable_and_threads() -> bool:
        was_set: bool = set_variable()
        _use_threads()
        return was_set

    setattr(utils, "set_omp_num_threads_if_unset", set_variable_and_threads)  # noqa: B010
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # else its global generator goes on alike in all copies


def _use_threads() -> None:
    """Gives NumPy's BLAS the threads that the variables say now: Ray sets them for each actor."""
    for name in (_BLAS_VARIABLE, _THREADS_VARIABLE):
        if os.environ.get(name, "").isdigit():
            for set_threads in _blas():
                set_threads(int(os.environ[name]))
            return


@cache
def _blas() -> list[Any]:
    """Returns the functions that set the threads of the BLAS that is loaded; none if unknown."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {line.split()[-1] for line in lines if "openblas" in line}
    libraries = [ctypes.CDLL(path) for path in paths]
    return [
        getattr(library, name)
        for library in libraries
        for name in _SET_THREADS
        if hasattr(library, name)
    ]
