"""Samples of image models: the pipeline, with its modules as they are trained, paints prompts."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from truthgpt_serve.training.errors import TrainingError, one_line
from truthgpt_serve.training.generation.record import Sample
from truthgpt_serve.training.generation.undisturbed import (
    Deadline,
    OutOfTimeError,
    undisturbed,
)
from truthgpt_serve.training.job import Monitor, TrainingJob

_SEEDS = 7
"""Keeps the seeds of these images apart from the run's other random numbers."""


def check_captions(cfg: Mapping[str, Any]) -> None:
    """Checks that all prompts are texts, and that nothing is asked for that is for texts.

    Raises:
        TrainingError: One is a chat, or a setting has no effect.
    """
    samples = cfg["training"]["samples"]
    if samples is None:
        return
    for index, prompt in enumerate(samples["prompts"]):
        if not isinstance(prompt, str):
            message = f"training.samples.prompts[{index}]: an image model takes no chat"
            raise TrainingError(f"{message} (write a text)")


class ImageSampler:
    """Paints the prompts, on the first worker; the others wait for it in their next step.

    Args:
        job: The run.
        monitor: Takes the images.
        accelerator: Of accelerate.
        pipeline: Whose modules are trained.
    """

    def __init__(self, job: TrainingJob, monitor: Monitor, accelerator: Any, pipeline: Any) -> None:
        self._job, self._monitor, self._accelerator = job, monitor, accelerator
        self._pipeline = pipeline
        self._settings = job.cfg["training"]["samples"]

    def __call__(self, step: int) -> None:
        """Makes and reports the images after a step."""
        if self._accelerator.is_main_process:
            self._monitor.sampled(step, self._make())

    def _make(self) -> list[Sample]:
        seconds = self._settings["timeout_s"]
        deadline = Deadline(seconds, self._monitor.should_stop)
        samples, device = [], self._accelerator.device
        parts = [p for p in self._pipeline.components.values() if isinstance(p, torch.nn.Module)]
        left_out = f"left out: training.samples.timeout_s {seconds:g} was over"
        with undisturbed(parts, device), _ready(self._pipeline, device):
            for index, prompt in enumerate(self._settings["prompts"]):
                shown = self._job.hidden.hide_long(prompt)
                try:
                    deadline.check()
                    samples.append(Sample(shown, image=self._paint(index, prompt, deadline)))
                except OutOfTimeError:
                    samples.append(Sample(shown, fault=left_out))
                except Exception as error:  # no sample is worth a run
                    samples.append(Sample(shown, fault=one_line(error)))
        return samples

    def _paint(self, index: int, prompt: str, deadline: Deadline) -> Any:
        def check(pipeline: Any, step: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
            deadline.check()
            return found

        cfg, steps = self._job.cfg, self._settings["steps"]
        edge = cfg["data"]["resolution"]
        seed = np.random.default_rng((cfg["seed"], _SEEDS, index)).integers(2**62)
        more = {} if steps is None else {"num_inference_steps": steps}
        with self._accelerator.autocast():
            found = self._pipeline(
                prompt,
                width=edge,
                height=edge,
                generator=torch.Generator("cpu").manual_seed(int(seed)),
                callback_on_step_end=check,
                **more,
            )
        return found.images[0]


@contextmanager
def _ready(pipeline: Any, device: Any) -> Iterator[None]:
    """Has a pipeline paint in the midst of training; afterwards it is as before."""
    scheduler, vae = pipeline.scheduler, pipeline.vae
    place, decode = vae.device, vae.decode

    def decode_exactly(latents: Any, *args: Any, **kwargs: Any) -> Any:
        # In 16 bits it may overflow.
        with torch.autocast(device.type, enabled=False):
            return decode(latents.to(vae.dtype), *args, **kwargs)

    if getattr(pipeline, "safety_checker", None) is not None:
        # It would put black images in the place of some; the result is written without it anyway.
        pipeline.register_modules(safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline.scheduler = copy.deepcopy(scheduler)
        vae.decode = decode_exactly
        vae.to(device)
        yield
    finally:
        del vae.decode
        pipeline.scheduler = scheduler
        vae.to(place)
