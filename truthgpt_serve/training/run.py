"""One run from its configuration to its result: plan, workers, and what to serve.

Knows no loop and no library that trains.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from truthgpt_serve.config import ModelConfig
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import FAILED, EventReader, forget_after
from truthgpt_serve.training.generation.record import forget_samples_after
from truthgpt_serve.training.guards import named_disk_faults
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.launch import ray_cluster, run_workers, starts_ray
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.plan import Facts, Plan, count_steps
from truthgpt_serve.training.progress import Progress
from truthgpt_serve.training.report import write_card, write_report
from truthgpt_serve.training.run_folder import (
    MODEL,
    RECORD,
    STOP,
    latest_checkpoint,
    locked,
    remove_leftovers,
    step_of,
)
from truthgpt_serve.training.run_record import (
    check_same,
    create_record,
    describe_data,
    has_trained,
    is_finished,
    read_record,
    write_record,
)
from truthgpt_serve.training.serving import Served, serving_of
from truthgpt_serve.training.stopping import stopping_by_signal
from truthgpt_serve.training.trackers import check_tracker
from truthgpt_serve.training.workers import (
    Workers,
    choose_workers,
    count_workers,
    find_shortage,
)

RUNS = "runs"
Say = Callable[[str], None]


def run_training(
    config: ModelConfig,
    *,
    say: Say,
    num_workers: int | None = None,
    resume: bool = False,
    out: Path | None = None,
    plan_only: bool = False,
) -> bool:
    """Trains the model of a configuration.

    Args:
        config: What to train and how.
        say: Prints a line of the plan or of the result.
        num_workers: `--workers`; by default one for each GPU of `hardware.gpus`, or one.
        resume: Go on with the run in the folder.
        out: The run's folder; by default `runs/<run_name>`.
        plan_only: End after the plan.

    Returns:
        True when the run has its result, or its plan; False when it was stopped before.

    Raises:
        TrainingError: It cannot start or go on.
    """
    folder = run_folder(config, out)
    loop = find_loop(config.to_cfg())
    check_tracker(config.training.tracker)
    _check_dataset(config)
    workers = num_workers or count_workers(config)
    job = _create_job(config, folder, workers)
    job.search_modules()
    with named_disk_faults(folder), locked(folder) as owner:
        record = create_record(job)
        job = _open_run(job, record, resume=resume, plan_only=plan_only)
        if is_finished(folder) and not plan_only:
            say(f"{folder}: this run is finished")
            _say_result(folder, say)
            return True
        facts = load_loop(loop).prepare(job)
        with ray_cluster(workers * config.hardware.cpus) as cluster_gpus:
            where = choose_workers(config, job, cluster_gpus)
            facts = _check_room(config, facts, where, cluster_gpus, plan_only)
            for line in _plan(config, job, facts, where).lines():
                say(line)
            if plan_only:
                return True
            say("")
            _begin_run(job, {**record, "data": describe_data(facts, job.hidden)})
            finished = _train(job, loop, where, owner)
        if finished:
            _say_result(folder, say)
        else:
            _say_stopped(folder, say)
        return finished


def run_folder(config: ModelConfig, out: Path | None) -> Path:
    """Returns the absolute path of a run's folder: `out`, else `runs/<run_name>`."""
    return (out or Path(RUNS) / config.run_name).absolute()


def _check_dataset(config: ModelConfig) -> None:
    if config.data.dataset is None:
        place = config.source.at("data", "dataset")
        raise TrainingError(f"{place}: is required for training (write a hub name or a path)")


def _create_job(config: ModelConfig, folder: Path, num_workers: int) -> TrainingJob:
    hidden = config.source.hidden
    return TrainingJob(config.to_cfg(), folder, None, num_workers, _module_folders(config), hidden)


def _module_folders(config: ModelConfig) -> list[str]:
    """Returns where a reward function may be: the working directory, and beside the YAML file."""
    beside = config.source.directory
    return [str(Path.cwd()), *([] if beside is None else [str(beside.absolute())])]


def _check_room(
    config: ModelConfig, facts: Facts, where: Workers, gpus: float, plan_only: bool
) -> Facts:
    """Returns the facts with what this machine lacks as a note; a run is refused for it."""
    lacks = find_shortage(config, where, gpus) if starts_ray() else None
    if lacks and not plan_only:
        raise TrainingError(lacks)
    return facts.with_note(lacks) if lacks else facts


def _open_run(
    job: TrainingJob, record: Mapping[str, Any], *, resume: bool, plan_only: bool
) -> TrainingJob:
    """Returns the job with its checkpoint, after comparing it with the run in the folder.

    A run that has trained no step binds nobody: it is begun again, whatever it was to be.
    """
    folder = job.folder
    old = read_record(folder)
    if resume and old is None:
        raise TrainingError(f"{folder}: there is no run to continue (leave --resume out)")
    if old is None or not has_trained(folder):
        return job
    if resume:
        check_same(folder, old, record)
        return replace(job, checkpoint=latest_checkpoint(folder))
    if not plan_only:
        fix = "go on with --resume, or start another with another run_name or --out"
        raise TrainingError(f"{folder}: there is a run already ({fix})")
    return job


def _begin_run(job: TrainingJob, record: Mapping[str, Any]) -> None:
    """Writes the record of a run that is ready to train, and clears what an earlier part left."""
    remove_leftovers(job.folder)
    step = step_of(job.checkpoint) if job.checkpoint else 0
    for forget in (forget_after, forget_samples_after):
        forget(job.folder, step)
    write_record(job.folder, record)


def _plan(config: ModelConfig, job: TrainingJob, facts: Facts, where: Workers) -> Plan:
    training = job.cfg["training"]
    lora = config.model_optim.lora
    what = f"an adapter (LoRA, r {lora.r})" if lora.enabled else "the whole model"
    if config.model.adapter:
        *below, last = map(_shown, map(Path, config.model.adapter))
        what = f"{what} on {', '.join((*below, last))}" if lora.stack else f"the adapter {last}"
    return Plan(
        run_name=config.run_name,
        folder=_shown(job.folder),
        method=f"{config.training.method} of {what}",
        devices=where.describe(),
        facts=facts,
        steps=count_steps(
            training,
            facts.num_examples,
            where.number,
            rows_per_example=facts.rows_per_example,
            drops_rest=facts.drops_rest,
            size_counts=facts.size_counts,
        ),
        first_step=step_of(job.checkpoint) if job.checkpoint else 0,
    )


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _train(job: TrainingJob, loop: str, where: Workers, owner: str) -> bool:
    """Runs the workers to the end; returns whether the result is there."""
    events = EventReader(job.folder)
    progress = Progress(sys.stderr)
    failures: list[dict[str, Any]] = []
    begun = False

    def follow() -> bool:
        nonlocal begun
        for event in events.read():
            begun = True
            if event["event"] == FAILED:
                failures.append(event)
            progress.show(event)
            if event["event"] in ("evaluated", "sampled"):
                _report(job.folder)
        # Workers that have not begun do not look, and may wait long for their places.
        return begun or not (job.folder / STOP).exists()

    try:
        with stopping_by_signal(job.folder):
            run_workers(job, loop, where, owner, meanwhile=follow)
    except TrainingError as error:
        raise _first_failure(failures) or error from error
    finally:
        progress.close()
        _report(job.folder)
    return is_finished(job.folder)


def _report(folder: Path) -> None:
    """Writes the page on the run; a disk without room for it does not end the run."""
    with suppress(OSError, TrainingError):
        write_report([folder])


def _first_failure(failures: list[dict[str, Any]]) -> TrainingError | None:
    """Returns what a worker has written about its end; what it foresaw comes first."""
    for event in sorted(failures, key=lambda event: not event["foreseen"]):
        return TrainingError(str(event["message"]))
    return None


def _say_stopped(folder: Path, say: Say) -> None:
    point = latest_checkpoint(folder) or "the start"
    say(f"stopped; go on with --resume from {point}")


def _say_result(folder: Path, say: Say) -> None:
    with suppress(OSError):  # the result is good without its card
        write_card(folder)
    say(f"the result is in {_shown(folder / MODEL)}; to serve it:")
    for line in describe_result(folder):
        say(line)


def find_served(given: Path, name: str | None = None) -> Served:
    """Returns how the result of a run is served.

    Args:
        given: The run's folder, or one of a result in it, such as its `merged/`.
        name: The model's name; by default the run's.

    Raises:
        TrainingError: There is no run, or it has no result yet.
    """
    folder = given.absolute()
    run = next((place for place in (folder, folder.parent) if (place / RECORD).is_file()), None)
    record = None if run is None else read_record(run)
    if run is None or not record or "config" not in record:
        fix = "name a run's folder; for another model: truthgpt init NAME --from FOLDER"
        raise TrainingError(f"{given}: there is no run ({fix})")
    result = run / MODEL if folder == run else folder
    if not result.is_dir():
        fix = "finish it with truthgpt train --resume"
        raise TrainingError(f"{given}: this run has no result yet ({fix})")
    return serving_of(record, result, name)


def describe_result(given: Path, name: str | None = None) -> list[str]:
    """Returns the lines of YAML that serve the result of a run; arguments as of `find_served`."""
    served = find_served(given, name)
    lines = ["# into `applications` of a Serve file, such as configs/serve.yaml:", *served.lines()]
    if served.adapter:
        lines += ["# or, where its model is served already, into the YAML of that:"]
        lines += served.adapter_lines()
    return [*lines, f"# or: truthgpt serve-line {_shown(given)} --serve {served.name}"]
