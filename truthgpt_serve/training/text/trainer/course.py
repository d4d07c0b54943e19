"""Where a run is, and what is decided after each of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.guards import what_is_left
from truthgpt_serve.training.job import Monitor, TrainingJob, WorkerUse
from truthgpt_serve.training.plan import StepCounts
from truthgpt_serve.training.text.trainer.exchange import exchange_use

EVAL_LOSS = "eval_loss"
_NOT_NUMBERS = frozenset({"loss", "learning_rate", "epoch", "num_tokens", "step"})


@dataclass
class Course:
    """Where a run is, shared by the trainer and its callback.

    Attributes:
        job: The run.
        monitor: What it reports to.
        steps: How many it has.
        evaluates: Whether there is something to evaluate on.
        num_units: Tokens that this worker has read since the last optimizer step.
        num_step_units: Tokens that all workers read in the last one.
        stopped: Whether it was asked to end.
        workers: What each of several workers did in the last step.
    """

    job: TrainingJob
    monitor: Monitor
    steps: StepCounts
    evaluates: bool
    num_units: int = 0
    num_step_units: int = 0
    stopped: bool = False
    workers: Sequence[WorkerUse] = ()
    losses: dict[int, float] = field(default_factory=dict)

    @property
    def training(self) -> Mapping[str, Any]:
        """The `training` section."""
        section: Mapping[str, Any] = self.job.cfg["training"]
        return section

    @property
    def best_step(self) -> int | None:
        """The step with the lowest evaluation loss so far, if the result is to be that one."""
        if not self.losses or not self.training["early_stopping_patience"]:
            return None
        return min(self.losses, key=lambda step: (self.losses[step], step))

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the last evaluations were all worse than the best."""
        best = self.best_step
        if best is None:
            return False
        worse = sum(step > best for step in self.losses)
        return bool(worse >= self.training["early_stopping_patience"])


class CourseCallback(TrainerCallback):  # type: ignore[misc] # transformers counts as Any
    """Decides after every step what to do next, and reports."""

    def __init__(self, course: Course) -> None:
        self._course = course

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the bar; a resumed run remembers its evaluations from the checkpoint's state."""
        for entry in state.log_history:
            if EVAL_LOSS in entry:
                self._course.losses[entry["step"]] = entry[EVAL_LOSS]
        self._course.monitor.begin(
            num_steps=state.max_steps, first_step=state.global_step, units="tokens"
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Decides, alike on every worker, whether to evaluate, to save and to stop."""
        course, step = self._course, state.global_step
        stop = self._agree(args)
        last = step >= course.steps.total
        every = course.training["eval_every"] or course.steps.per_epoch
        control.should_evaluate = course.evaluates and (step % every == 0 or last)
        control.should_save = stop or step % course.training["checkpoint_every"] == 0
        if stop and not last:
            course.stopped = True
            control.should_training_stop = True

    def _agree(self, args: Any) -> bool:
        """Adds up, over all workers, the tokens of the step and the wishes to stop."""
        course = self._course
        wish = course.monitor.should_stop()
        units, course.num_units = course.num_units, 0
        if args.world_size > 1:
            wish, workers = exchange_use(units, wish, args.world_size, args.device)
            course.workers, units = workers, sum(each.num_units for each in workers)
        course.num_step_units = units
        return wish

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Reports a step; its entry leaves the history, which a checkpoint would have to carry."""
        if not logs or "loss" not in logs:
            return
        if state.log_history and "loss" in state.log_history[-1]:
            state.log_history.pop()
        more = {
            name: float(value)
            for name, value in logs.items()
            if name not in _NOT_NUMBERS and isinstance(value, int | float)
        }
        course = self._course
        course.monitor.step(
            state.global_step,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate", 0.0),
            num_units=course.num_step_units,
            workers=course.workers,
            **more,
        )
        norm = more.get("grad_norm", 0.0)
        if not math.isfinite(norm) and not args.fp16:  # the scaler of fp16 skips such steps
            fix = "lower training.learning_rate, or look at the data"
            raise TrainingError(
                f"the gradient of step {state.global_step} is {norm} ({fix}); "
                f"{what_is_left(course.job.folder)}"
            )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Reports an evaluation; the best is saved, and too many worse ones end the run."""
        course, step = self._course, state.global_step
        numbers = {
            name.removeprefix("eval_"): float(value)
            for name, value in (metrics or {}).items()
            if isinstance(value, int | float) and name != "epoch"
        }
        course.monitor.evaluated(step, numbers)
        if EVAL_LOSS in (metrics or {}):
            course.losses[step] = metrics[EVAL_LOSS]
        if course.best_step == step:
            control.should_save = True
        if course.is_out_of_patience:
            control.should_training_stop = True
