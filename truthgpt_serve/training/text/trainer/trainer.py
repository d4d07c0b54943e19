"""What every trainer of transformers and trl here has in common: monitor, checkpoints, result.

A loop mixes it into the trainer of its method.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.guards import reading_checkpoint, what_is_left
from truthgpt_serve.training.memory.optimizers import state_bytes
from truthgpt_serve.training.run_folder import (
    CHECKPOINTS,
    MODEL,
    begin_checkpoint,
    finish_checkpoint,
    prune_checkpoints,
    replace_folder,
)
from truthgpt_serve.training.text.trainer.course import Course, CourseCallback
from truthgpt_serve.training.text.trainer.sharding import (
    check_unwrapped,
    full_state,
    is_sharded,
    load_optimizer,
    load_weights,
    local_part,
    save_shards,
    shard_model,
)


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
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    args: Any
    state: Any
    accelerator: Any

    def follow(self, course: Course) -> None:
        """Sets the course of the run, and shards the model where `training.fsdp` says so."""
        self.course = course
        shard_model(self.model, course.training, on_cpu=self.args.device.type == "cpu")
        trainer: Any = self
        trainer.remove_callback(PrinterCallback)  # it prints what the monitor is told
        trainer.add_callback(CourseCallback(course))

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the tokens of the batches of one step on the way."""
        check_unwrapped(self.model, self.model_wrapped)
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
        with _writing(unfinished, f"the checkpoint of step {step}", folder):
            if first:
                begin_checkpoint(folder, step)
            self.accelerator.wait_for_everyone()
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
        if is_sharded(self.model):
            save_shards(Path(folder), self.model, self.optimizer)
            if self.args.should_save:
                torch.save(self.lr_scheduler.state_dict(), Path(folder) / SCHEDULER_NAME)
        else:
            trainer.save_model(folder, _internal_call=True)
            trainer._save_optimizer_and_scheduler(folder)
        trainer._save_scaler(folder)
        trainer._save_rng_state(folder)
        if self.args.should_save:
            self.state.save_to_json(str(Path(folder) / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads the weights of a checkpoint; called on every worker."""
        trainer: Any = super()
        with reading_checkpoint(Path(resume_from_checkpoint)):
            TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            if is_sharded(self.model):
                load_weights(Path(resume_from_checkpoint), self.model)
            else:
                trainer._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Reads the rest of what a step changes; called on every worker."""
        if checkpoint is None:
            return
        trainer: Any = super()
        with reading_checkpoint(Path(checkpoint)):
            if is_sharded(self.model):
                load_optimizer(Path(checkpoint), self.model, self.optimizer)
                state = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
                self.lr_scheduler.load_state_dict(state)
            else:
                trainer._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Reads the states of the random generators; called on every worker."""
        if checkpoint is None:
            return
        trainer: Any = super()
        with reading_checkpoint(Path(checkpoint)):
            trainer._load_rng_state(checkpoint)

    def _check_weights(self) -> None:
        """Refuses to save weights that are no numbers: the last checkpoint must stay usable."""
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(local_part(weight)).all()):
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
        if self.args.process_index == 0 or is_sharded(self.model):
            self._load_best()
            self._check_weights()
            folder, first = self.course.job.folder, self.args.process_index == 0
            unfinished = folder / f".{MODEL}.tmp"
            if first:
                self.course.monitor.check_space(self._trained_bytes())
                shutil.rmtree(unfinished, ignore_errors=True)
            with _writing(unfinished, "the model", folder):
                model, options = self._gather_result(dtype)
                if first:
                    model.save_pretrained(str(unfinished), **options)
                    tokenizer.save_pretrained(str(unfinished))
                    self.add_files(unfinished)
                    replace_folder(unfinished, folder / MODEL)
        self.accelerator.wait_for_everyone()

    def _load_best(self) -> None:
        best = self.course.best_step
        if best is not None and best != self.state.global_step:
            self._load_from_checkpoint(str(self.course.job.folder / CHECKPOINTS / f"step-{best}"))

    def _gather_result(self, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
        """Returns the model to write, and how; of a sharded one called on every worker."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.merges_adapter and hasattr(model, "peft_config"):
            model = model.merge_and_unload()
        options: dict[str, Any] = {}
        if not hasattr(model, "peft_config"):
            model = model.to(dtype)
            model.config.use_cache = True  # the trainer has switched it off: for itself
        else:  # trl keeps a second adapter to compare with
            options["selected_adapters"] = ["default"]
        if is_sharded(model):
            options["state_dict"] = full_state(model)
        return model, options

    def add_files(self, folder: Path) -> None:
        """Writes what else a result of this kind has; called on rank 0."""
