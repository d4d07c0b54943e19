"""What every trainer of transformers and trl here has in common: monitor, checkpoints, result.

A loop mixes it into the trainer of its method.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.guards import what_is_left
from truthgpt_serve.training.job import Monitor, TrainingJob
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.plan import StepCounts
from truthgpt_serve.training.run_folder import (
    CHECKPOINTS,
    MODEL,
    begin_checkpoint,
    finish_checkpoint,
    prune_checkpoints,
    replace_folder,
)

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
    """

    job: TrainingJob
    monitor: Monitor
    steps: StepCounts
    evaluates: bool
    num_units: int = 0
    num_step_units: int = 0
    stopped: bool = False
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
            sums = torch.tensor([units, int(wish)], dtype=torch.int64, device=args.device)
            torch.distributed.all_reduce(sums)
            units, wish = int(sums[0]), bool(sums[1])
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


@contextmanager
def _writing(unfinished: Path, what: str, run: Path) -> Iterator[None]:
    """Removes what is half written when it cannot go on, and says which checkpoint is left."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise TrainingError(
            f"{run}: {what} cannot be written: {error} "
            f"(make room, then continue with --resume); {what_is_left(run)}"
        ) from error


class CourseTrainer:
    """Mixed into a `transformers.Trainer`: whole checkpoints, counted tokens, the result's folder.

    `follow` is to be called before `train`.
    """

    merges_adapter = False
    """Whether the result is a whole model in any case: an adapter of its kind is served nowhere."""
    course: Course
    model: Any
    args: Any
    state: Any
    accelerator: Any

    def follow(self, course: Course) -> None:
        """Sets the course of the run."""
        self.course = course
        trainer: Any = self
        trainer.remove_callback(PrinterCallback)  # it prints what the monitor is told
        trainer.add_callback(CourseCallback(course))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the tokens of the batches of one step on the way."""
        found = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc] # the trainer's
        self.course.num_units += sum(self.count_units(batch) for batch in found[0])
        return found

    def count_units(self, batch: Any) -> int:
        """Returns the tokens of one batch, without padding."""
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        return 0 if mask is None else int(mask.sum())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint beside its place and renames it; called on every worker."""
        course, step = self.course, self.state.global_step
        self._check_weights()
        folder, first = course.job.folder, self.args.process_index == 0
        unfinished = folder / CHECKPOINTS / f".step-{step}.tmp"
        if first:
            course.monitor.check_space(self._checkpoint_bytes())
            begin_checkpoint(folder, step)
        self.accelerator.wait_for_everyone()
        with _writing(unfinished, f"the checkpoint of step {step}", folder):
            self._write_checkpoint(str(unfinished))
            self.accelerator.wait_for_everyone()
            if first:
                finish_checkpoint(unfinished)
                best = course.best_step
                keep = course.training["keep_checkpoints"]
                prune_checkpoints(folder, keep, also=[] if best is None else [best])
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, folder: str) -> None:
        trainer: Any = self
        trainer.save_model(folder, _internal_call=True)
        trainer._save_optimizer_and_scheduler(folder)
        trainer._save_scaler(folder)
        trainer._save_rng_state(folder)
        if self.args.should_save:
            self.state.save_to_json(str(Path(folder) / TRAINER_STATE_NAME))

    def _check_weights(self) -> None:
        """Refuses to save weights that are no numbers: the last checkpoint must stay usable."""
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(weight).all()):
                fix = "lower training.learning_rate, or look at the data"
                raise TrainingError(
                    f"after step {self.state.global_step} the weight {name} is not finite "
                    f"({fix}); {what_is_left(self.course.job.folder)}"
                )

    def _checkpoint_bytes(self) -> int:
        trained = sum(int(w.numel()) for w in self.model.parameters() if w.requires_grad)
        return self._trained_bytes() + state_bytes(self.course.training, trained)

    def _trained_bytes(self) -> int:
        partly = any(not weight.requires_grad for weight in self.model.parameters())
        sizes = [
            int(weight.numel() * weight.element_size())
            for weight in self.model.parameters()
            if weight.requires_grad or not partly
        ]
        return sum(sizes)

    def write_result(self, tokenizer: Any, dtype: torch.dtype) -> None:
        """Writes `model/`: an ordinary Hugging Face folder of the best, or the last, weights.

        Args:
            tokenizer: Written beside the weights.
            dtype: Number format of the weights; an adapter stays as it was trained.
        """
        self.accelerator.wait_for_everyone()
        if self.args.process_index == 0:
            folder = self.course.job.folder
            best = self.course.best_step
            if best is not None and best != self.state.global_step:
                trainer: Any = self
                trainer._load_from_checkpoint(str(folder / CHECKPOINTS / f"step-{best}"))
            self._check_weights()
            self.course.monitor.check_space(self._trained_bytes())
            unfinished = folder / f".{MODEL}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            with _writing(unfinished, "the model", folder):
                self._write_model(unfinished, tokenizer, dtype)
                replace_folder(unfinished, folder / MODEL)
        self.accelerator.wait_for_everyone()

    def _write_model(self, folder: Path, tokenizer: Any, dtype: torch.dtype) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.merges_adapter and hasattr(model, "peft_config"):
            model = model.merge_and_unload()
        if not hasattr(model, "peft_config"):
            model = model.to(dtype)
            model.config.use_cache = True  # the trainer has switched it off: for itself
            model.save_pretrained(str(folder))
        else:  # trl keeps a second adapter to compare with
            model.save_pretrained(str(folder), selected_adapters=["default"])
        tokenizer.save_pretrained(str(folder))
