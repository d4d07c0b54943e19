"""Follows the denoising steps of a pipeline through its own callback; does not run anything."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from deployments.hf_diffusers.stepping.errors import JobCancelled
from deployments.hf_diffusers.stepping.job import Event, PartialImage, Progress
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ScheduledJob

logger = logging.getLogger(__name__)


class StepFollower:
    """Counts a job's steps, tells its submitter, and decodes partial images when they are due."""

    def __init__(
        self, scheduled: ScheduledJob, pipeline: Any, on_step: Callable[[ScheduledJob], None]
    ) -> None:
        self._scheduled = scheduled
        self._pipeline = pipeline
        self._on_step = on_step
        self._num_shown = 0

    def arguments(self) -> Mapping[str, Any]:
        """Returns what to add to the pipeline's call so that it reports its steps, if it can."""
        parameters = inspect.signature(type(self._pipeline).__call__).parameters
        if "callback_on_step_end" in parameters:
            return {"callback_on_step_end": self._on_step_end}
        if "callback" in parameters and "callback_steps" in parameters:
            return {"callback": self._old_callback, "callback_steps": 1}
        return {}

    def _on_step_end(self, pipeline: Any, index: int, timestep: Any, tensors: Any) -> Any:
        self._follow(index, tensors.get("latents"))
        return tensors

    def _old_callback(self, index: int, timestep: Any, latents: Any) -> None:
        self._follow(index, latents)

    def _follow(self, index: int, latents: torch.Tensor | None) -> None:
        scheduled = self._scheduled
        if scheduled.cancel_requested:
            raise JobCancelled
        scheduled.step = index + 1
        follow_num_steps(scheduled, self._pipeline)
        self._on_step(scheduled)
        scheduled.job.progress = Progress(scheduled.step, scheduled.num_steps, 0)
        send(scheduled, scheduled.job.progress)
        if scheduled.partial_images and latents is not None and self._is_due():
            self._show(latents)

    def _is_due(self) -> bool:
        """Partial image k of n is due when k / (n + 1) of the steps are done, never at the end."""
        scheduled = self._scheduled
        due = scheduled.step * (scheduled.partial_images + 1) // max(scheduled.num_steps, 1)
        return self._num_shown < due and scheduled.step < scheduled.num_steps

    def _show(self, latents: torch.Tensor) -> None:
        scheduled = self._scheduled
        preview = scheduled.entry.preview
        if preview is None:
            return
        size = scheduled.cost_key.size
        image = preview(self._pipeline, latents, size)
        if image is None:
            logger.warning(
                "%s: no partial image of latents %s", scheduled.entry.name, latents.shape
            )
            scheduled.partial_images = 0
            return
        send(scheduled, PartialImage(self._num_shown, image))
        self._num_shown += 1


def follow_num_steps(scheduled: ScheduledJob, pipeline: Any) -> None:
    """Takes the real number of steps from the pipeline, once it has made its timesteps."""
    known = pipeline.__dict__.get("_num_timesteps")
    if isinstance(known, int) and known > 0:
        scheduled.num_steps = known


def send(scheduled: ScheduledJob, event: Event) -> None:
    """Gives an event to the submitter; one who raises is not told anything more."""
    if scheduled.on_event is None:
        return
    try:
        scheduled.on_event(event)
    except Exception:
        logger.exception("on_event of %s failed: it gets no more events", scheduled.job)
        scheduled.on_event = None
