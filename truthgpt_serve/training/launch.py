"""Runs a loop in workers of Ray Train: one, several on this machine, or a cluster's, all alike.

Knows no loop and no library that trains: the worker imports its loop by the path of its module.
"""

from __future__ import annotations

import importlib
import math
import os
import secrets
import shutil
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from truthgpt_serve.cluster.private_files import (
    LOOPBACK_ONLY,
    TOKEN_PATH_VARIABLE,
    make_private_folder,
    write_token,
)
from truthgpt_serve.cluster.service.ray_limits import lengthen_node_limits
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.training.errors import TrainingError, one_line
from truthgpt_serve.training.events import FAILED, EventWriter
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.loops import load_loop
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.peers import ending_with_peers
from truthgpt_serve.training.run_folder import LOGS, working
from truthgpt_serve.training.workers import Workers

ADDRESS_VARIABLE = "RAY_ADDRESS"
POLL_S = 0.2
START_RETRIES = 3
"""Times that Ray Train waits a minute for its workers' resources before it gives up."""
_DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK")
_ENVIRONMENT = {
    # The run's folder is the one place for files; paths of the user's stay relative to the command.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray Train asks its workers so often whether they are done: its default adds two idle seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # The thread of a run that was given up must not start another Ray, see `run_workers`.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Ray's own curves of the run need Prometheus; ours are the tracker's.
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

_LOOPBACK = {**LOOPBACK_ONLY, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Where a Ray of our own and its workers listen."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_NO_API_SERVER = ("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:0")
"""Nowhere. Ray Train asks the API server each second whether its controller lives. A Ray of our own
has none, yet notes the port where one would be: if that of another Ray listens there, a service's
for example, it does not know the controller, which is then taken for dead, and the run is ended."""


def starts_ray() -> bool:
    """Returns whether `ray_cluster` starts a Ray of its own, which gets no further nodes."""
    return os.environ.get(ADDRESS_VARIABLE, "") in ("", "local")


@contextmanager
def ray_cluster(num_cpus: float) -> Iterator[float]:
    """Connects to the cluster that `RAY_ADDRESS` names, else starts a Ray of its own.

    One that happens to run on this machine is left alone: a service's may end at any time, and the
    run with it.

    Args:
        num_cpus: Least CPU cores that a Ray started here may hand out.

    Yields:
        The GPUs of the cluster. A Ray that was started here ends with the block.

    Raises:
        TrainingError: Ray does not start, or the cluster cannot be reached.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _own_ray(num_cpus) if starts_ray() else _ray_at(os.environ[ADDRESS_VARIABLE]):
        import ray

        yield float(ray.cluster_resources().get("GPU", 0))


@contextmanager
def _own_ray(num_cpus: float) -> Iterator[None]:
    """Starts Ray on the loopback address, with files and a token for this user alone."""
    folder = make_private_folder()
    try:
        token_file = write_token(folder, _process_token())
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ[TOKEN_PATH_VARIABLE] = str(token_file)
        os.environ.update([_NO_API_SERVER])
        for name, value in _LOOPBACK.items():
            os.environ.setdefault(name, value)
        import ray

        try:
            lengthen_node_limits()
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, math.ceil(num_cpus)),
                include_dashboard=False,
                _temp_dir=str(folder / "ray"),
                **_QUIET,
            )
        except Exception as error:  # of a time-out it raises this very class
            ray.shutdown()
            fix = f"try again when the machine has less to do, or set {ADDRESS_VARIABLE}"
            raise TrainingError(f"Ray did not start: {one_line(error)} ({fix})") from error
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _process_token() -> str:
    """Returns the token of the clusters of this process: Ray reads it once in a process."""
    return secrets.token_hex(32)


@contextmanager
def _ray_at(address: str) -> Iterator[None]:
    import ray

    try:
        ray.init(address=address, **_QUIET)
    except Exception as error:
        fix = f"correct {ADDRESS_VARIABLE}, or unset it"
        message = f"there is no Ray cluster at {address}"
        if not isinstance(error, ConnectionError):
            message = f"the Ray cluster at {address} cannot be used: {one_line(error)}"
        raise TrainingError(f"{message} ({fix})") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_workers(
    job: TrainingJob, loop: str, workers: Workers, owner: str, *, meanwhile: Callable[[], bool]
) -> None:
    """Runs a loop to its end, inside `ray_cluster`.

    Args:
        job: What to train.
        loop: The loop's module.
        workers: What to train on.
        owner: The command's token, see `run_folder.locked`.
        meanwhile: Called several times a second in this thread: the main one, which gets signals.
            False gives the workers up: they end with `ray_cluster`.

    Raises:
        TrainingError: The run failed. Why, a worker has written as the event `failed`, unless it
            died without a word.
    """
    # Ray Train takes Ctrl-C for itself when it runs in the main thread.
    failure: list[BaseException] = []
    thread = threading.Thread(target=_fit, args=(job, loop, workers, owner, failure), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if not meanwhile():
            return
    meanwhile()
    if failure:
        raise TrainingError(f"{job.folder}: {one_line(failure[0])}") from failure[0]


def _fit(
    job: TrainingJob, loop: str, workers: Workers, owner: str, failure: list[BaseException]
) -> None:
    try:
        from ray.train.torch import TorchTrainer

        from truthgpt_serve.training.rendezvous import NamedAddressConfig

        # By name at run time: to a type checker the module has the classes of Ray's older trainer.
        classes: Any = importlib.import_module("ray.train")
        TorchTrainer(
            work,
            torch_config=NamedAddressConfig(),
            train_loop_config={"job": job, "loop": loop, "owner": owner},
            scaling_config=classes.ScalingConfig(
                num_workers=workers.number,
                use_gpu=workers.gpus > 0,
                resources_per_worker=_resources(workers),
                accelerator_type=workers.accelerator_type if workers.gpus else None,
            ),
            run_config=classes.RunConfig(
                name="ray",
                storage_path=str(job.folder / LOGS),
                # A failed run is gone on with by `--resume`, which reads the same checkpoints.
                failure_config=classes.FailureConfig(
                    max_failures=0,
                    controller_failure_limit=START_RETRIES,
                ),
                logging_config=classes.LoggingConfig(log_level="ERROR"),
            ),
        ).fit()
    except BaseException as error:
        failure.append(error)


def _resources(workers: Workers) -> dict[str, float]:
    resources = {"CPU": workers.cpus}
    return {**resources, "GPU": workers.gpus} if workers.gpus else resources


def work(config: Mapping[str, Any]) -> None:
    """Runs one worker; Ray Train calls it in every worker with the same argument."""
    from ray import train

    job: TrainingJob = config["job"]
    rank: int = train.get_context().get_world_rank()
    if job.num_workers == 1:
        # One worker has no peers: without these a trainer leaves DDP out.
        for name in _DISTRIBUTED:
            os.environ.pop(name, None)
    job.search_modules()
    with (
        working(job.folder) if rank == 0 else nullcontext(),
        RunMonitor(job, rank, owner=config["owner"]) as monitor,
    ):
        try:
            with ending_with_peers(job.folder) if job.num_workers > 1 else nullcontext():
                load_loop(config["loop"]).train(job, monitor)
        except Exception as error:
            record_failure(job.folder, error, job.hidden)
            raise


def record_failure(folder: Path, error: Exception, hidden: HiddenValues) -> None:
    """Writes down why a worker failed, as the event `failed`, which any rank may write."""
    foreseen = isinstance(error, TrainingError)
    lines = [str(error)] if foreseen else traceback.format_exception(error, limit=-4)
    message = hidden.hide_long("".join(lines).rstrip())
    writer = EventWriter(folder)
    try:
        writer.write(FAILED, message=message, foreseen=foreseen)
    finally:
        writer.close()
