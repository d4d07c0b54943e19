"""The loop that trains one module of an image pipeline: steps, evaluations, checkpoints.

A `Learner` says what the module is and how its loss is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from truthgpt_serve.training.images.data.draws import LatentShape
from truthgpt_serve.training.images.data.feed import Feed
from truthgpt_serve.training.images.data.rows import Batch
from truthgpt_serve.training.images.data.samples import Source, to_device
from truthgpt_serve.training.images.state import (
    Progress,
    Trained,
    load_best,
    load_checkpoint,
    save_checkpoint,
)
from truthgpt_serve.training.job import Monitor, TrainingJob, WorkerUse
from truthgpt_serve.training.memory.optimizers import create_optimizer
from truthgpt_serve.training.memory.use import peak_memory


class Learner(Protocol):
    """What is trained.

    Attributes:
        module: With the trained parameters; those that require gradients are trained.
        latent_shape: Of the noise of each example.
    """

    module: Any
    latent_shape: LatentShape

    def losses(self, module: Any, batch: Batch) -> Any:
        """Returns the loss of each example, shape (batch,).

        Args:
            module: What to call: `module`, or it wrapped for several workers.
            batch: On the device.
        """


class Loop:
    """One run of one worker.

    Args:
        job: The run.
        monitor: Is told of every step.
        accelerator: Of accelerate.
        learner: What is trained; its module is on the device.
        data: To train on.
        eval_data: To evaluate on, or None.
        prior: Images of the class that are learned beside, or None.
        sample: Makes the samples of an evaluation, after the step that it is given.
    """

    def __init__(
        self,
        job: TrainingJob,
        monitor: Monitor,
        accelerator: Any,
        learner: Learner,
        data: Source,
        eval_data: Source | None,
        prior: Source | None = None,
        sample: Callable[[int], None] | None = None,
    ) -> None:
        self._job = job
        self._training = job.cfg["training"]
        self._monitor = monitor
        self._accelerator = accelerator
        self._learner = learner
        self._sample = sample
        self._feed = Feed(job.cfg, accelerator, learner.latent_shape, data, eval_data, prior)
        self._order, self._steps = self._feed.order, self._feed.steps
        self._model = accelerator.prepare_model(learner.module)
        self._trained = self._create_trained()

    def _create_trained(self) -> Trained:
        training = self._training
        weights = {
            name: value
            for name, value in self._learner.module.named_parameters()
            if value.requires_grad
        }
        decay = training["weight_decay"]
        groups = [
            {"params": [one for one in weights.values() if one.ndim > 1], "weight_decay": decay},
            # Biases and the scales of norms are not pulled toward zero.
            {"params": [one for one in weights.values() if one.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = create_optimizer(
            training,
            [group for group in groups if group["params"]],
            on_cpu=self._accelerator.device.type == "cpu",
        )
        schedule = get_scheduler(
            training["scheduler"],
            optimizer,
            num_warmup_steps=self._steps.warmup,
            num_training_steps=self._steps.total,
        )
        average = None
        if training["ema_decay"] > 0:
            average = EMAModel(weights.values(), decay=training["ema_decay"], foreach=True)
        return Trained(
            accelerator=self._accelerator,
            weights=weights,
            optimizer=self._accelerator.prepare_optimizer(optimizer),
            schedule=schedule,
            average=average,
            progress=Progress(step=0, step_size=self._order.step_size),
        )

    def run(self) -> bool:
        """Trains to the end, or until it is asked to stop.

        Returns:
            Whether the run is at its end; the module then has the weights that are its result.

        Raises:
            TrainingError: The loss is no number, the disk is full, or a row is bad.
        """
        if self._job.checkpoint is not None:
            load_checkpoint(self._trained, self._job.checkpoint)
        progress = self._trained.progress
        self._monitor.begin(num_steps=self._steps.total, first_step=progress.step, units="images")
        batches = self._feed.training(progress.step)
        while progress.step < self._steps.total and not self._is_hopeless():
            stop = self._step(batches)
            saved = False
            if self._should_evaluate():
                if self._sample is not None:
                    with self._averaged():
                        self._sample(progress.step)
                saved = self._evaluate()
            due = progress.step % self._training["checkpoint_every"] == 0
            if (stop or due) and not saved:
                self._save()
            if stop and progress.step < self._steps.total:
                return False
        self._finish()
        return True

    def _step(self, batches: Iterator[Batch]) -> bool:
        """Does one optimizer step; returns whether some worker was asked to stop."""
        trained, accelerator = self._trained, self._accelerator
        total = torch.zeros((), device=accelerator.device)
        for _ in range(self._order.accumulation):
            batch = to_device(next(batches), accelerator.device)
            with accelerator.accumulate(self._model):
                loss = self._learner.losses(self._model, batch).mean()
                accelerator.backward(loss)
            total += loss.detach() / self._order.accumulation
        norm = self._clip()
        rate = trained.schedule.get_last_lr()[0]
        trained.optimizer.step()
        trained.optimizer.zero_grad()
        # With fp16 a step whose gradients overflow is left out, and does not count.
        if not trained.optimizer.step_was_skipped:
            trained.schedule.step()
            if trained.average is not None:
                trained.average.step(trained.weights.values())
        trained.progress.step += 1
        return self._report(total, norm, rate)

    def _clip(self) -> Any:
        largest = self._training["max_grad_norm"]
        weights = self._trained.weights.values()
        return self._accelerator.clip_grad_norm_(weights, largest if largest > 0 else math.inf)

    def _report(self, loss: Any, norm: Any, rate: float) -> bool:
        accelerator = self._accelerator
        own = [float(self._monitor.should_stop()), peak_memory()]
        sent = torch.tensor(own, dtype=torch.float64, device=accelerator.device)
        # One exchange for all, and one wait for the device.
        rows = accelerator.gather(torch.cat([loss.double().reshape(1), sent])).reshape(-1, 3)
        losses, stops, memories = rows.T.tolist()
        value, norm = math.fsum(losses) / len(losses), float(norm)
        if accelerator.scaler is None and math.isfinite(value) and not math.isfinite(norm):
            # The weights are lost already, though the loss will tell only after the next step.
            value = norm
        self._monitor.step(
            self._trained.progress.step,
            loss=value,
            learning_rate=rate,
            num_units=self._order.step_size,
            workers=[
                WorkerUse(self._order.step_size // len(memories), int(memory))
                for memory in memories
                if len(memories) > 1
            ],
            grad_norm=norm,
        )
        return any(stops)

    def _should_evaluate(self) -> bool:
        every: int = self._training["eval_every"] or self._steps.per_epoch
        step = self._trained.progress.step
        return step % every == 0 or step == self._steps.total

    def _is_hopeless(self) -> bool:
        patience: int = self._training["early_stopping_patience"]
        return 0 < patience <= self._trained.progress.num_worse

    def _evaluate(self) -> bool:
        """Evaluates, if there is something to evaluate on; returns whether it saved a checkpoint.

        The same noise and noise levels are used every time, so that losses can be compared.
        """
        if not self._feed.has_evaluation:
            return False
        with self._averaged(), torch.no_grad():
            loss = self._evaluation_loss()
        progress = self._trained.progress
        self._monitor.evaluated(progress.step, {"eval_loss": loss})
        is_best = progress.note(loss)
        # The best one is kept, for it is the result.
        if not is_best or self._training["early_stopping_patience"] == 0:
            return False
        self._save()
        return True

    def _evaluation_loss(self) -> float:
        accelerator, module = self._accelerator, self._learner.module
        total = torch.zeros(2, device=accelerator.device, dtype=torch.float64)
        was_training = [one for one in module.modules() if one.training]
        module.eval()
        try:
            # Not through the wrapped module: workers may have different numbers of batches.
            for batch in self._feed.evaluation():
                losses = self._learner.losses(module, to_device(batch, accelerator.device))
                total += torch.stack([losses.double().sum(), losses.new_tensor(len(losses))])
        finally:
            for one in was_training:
                one.training = True
        summed, count = accelerator.reduce(total, "sum").tolist()
        return float(summed / count)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        average, weights = self._trained.average, self._trained.weights
        if average is None:
            yield
            return
        average.store(weights.values())
        average.copy_to(weights.values())
        try:
            yield
        finally:
            average.restore(weights.values())

    def _save(self) -> None:
        keep = self._training["keep_checkpoints"]
        save_checkpoint(self._trained, self._job.folder, keep, self._monitor)

    def _finish(self) -> None:
        """Gives the module the weights that are the result."""
        trained = self._trained
        if self._training["early_stopping_patience"] > 0:
            load_best(trained, self._job.folder)
        if trained.average is not None:
            trained.average.copy_to(trained.weights.values())
