"""A job as the engine's thread sees it, and one parked call."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from deployments.hf_diffusers.stepping.calls.schemas import CallSchema
from deployments.hf_diffusers.stepping.calls.tensor_hash import Digests
from deployments.hf_diffusers.stepping.job import Event, Job
from deployments.hf_diffusers.stepping.pipelines.adapters import Adapters
from deployments.hf_diffusers.stepping.pipelines.added import ModuleEntry, PipelineEntry
from deployments.hf_diffusers.stepping.pipelines.proxies import JobGreenlet
from deployments.hf_diffusers.stepping.scheduling.cost_model import CostKey
from deployments.hf_diffusers.stepping.scheduling.row_caps import Probe


@dataclass(eq=False, slots=True)
class ScheduledJob:
    """Everything the engine keeps about one job, let go of when the job ends."""

    job: Job
    entry: PipelineEntry
    inputs: Mapping[str, Any]
    scheduler: Any
    adapters: Adapters
    submitted_at: float
    """Seconds of the monotonic clock, as `deadline`."""
    deadline: float
    """Infinite without one."""
    num_steps: int
    num_images: int
    cost_key: CostKey
    step_cost: float
    """Estimated seconds of one denoising step of this job alone."""
    partial_images: int
    on_event: Callable[[Event], None] | None
    exclusive: bool
    digests: Digests = field(default_factory=Digests)
    probe: Probe | None = None
    step: int = 0
    measured_seconds: float = 0.0
    """This job's share of its denoiser's forwards since its last step ended."""
    num_held: int = 0
    """Forwards of denoisers that its text encoding or decoding has waited for to share one."""
    cancel_requested: bool = False
    greenlet: JobGreenlet | None = None
    clone: Any = None
    output: Any = None
    error: BaseException | None = None

    def remaining_seconds(self) -> float:
        """Estimated time of the denoising steps that are left, if the job were alone."""
        return max(self.num_steps - self.step, 1) * self.step_cost

    def is_due(self, now: float) -> bool:
        """Whether a deadline was promised and is still to come."""
        return now < self.deadline < math.inf

    def priority(self, now: float, aging: float) -> tuple[int, float]:
        """Returns a value by which jobs are ordered: the smallest goes first.

        Jobs with a deadline still to come go first, earliest first; a missed deadline counts no
        more. The rest go by shortest remaining work, divided by their slowdown to the power `aging`
        (with 1, highest-response-ratio-next, Brinch Hansen 1971, over the remaining work): a small
        job that waits soon goes before a large one that has waited as long. What bounds the wait of
        a large one is its share once it is the oldest (selection.py).
        """
        if self.is_due(now):
            return 0, self.deadline
        alone = max(self.num_steps * self.step_cost, 1e-9)
        slowdown = max((now - self.submitted_at) / alone, 1.0)
        return 1, self.remaining_seconds() / slowdown**aging


@dataclass(eq=False, slots=True)
class ModuleCall:
    """A call of a module by a pipeline that waits for its result."""

    scheduled: ScheduledJob
    module: ModuleEntry
    method: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    """As the pipeline gave them where the call runs alone; bound to names in `bound`."""
    bound: Mapping[str, Any]
    schema: CallSchema | None
    """None: the call runs alone."""
    key: Hashable
    """Calls with equal keys may share a forward."""
    num_rows: int
    shape: str
    """Shape of one row, as in a row cap's key."""
    adapters: Adapters
    """Those of the job that touch this module."""
    device: torch.device
    """Where its tensors are; the module's parameters may be elsewhere, if they are offloaded."""
    is_light: bool
    """Whether the call is no denoising: it goes before denoising, because it is short and either
    brings a new job to its steps or lets a finished one go."""


@dataclass(slots=True)
class Outcome:
    """What a call came to: a value, or an error to raise in the pipeline."""

    value: Any = None
    error: BaseException | None = None
