"""Step-level continuous batching of stock Diffusers pipelines.

Knows neither Ray nor HTTP nor model families, and is used from a plain script like this:

    engine = StepEngine(EngineOptions(max_rows=8))
    engine.add_pipeline("sdxl", pipeline)
    job = engine.submit("sdxl", {"prompt": "a lighthouse", "num_inference_steps": 20})
    image = job.result().images[0]
    engine.close()
"""

from deployments.hf_diffusers.stepping.engine import StepEngine
from deployments.hf_diffusers.stepping.errors import (
    DoesNotFitError,
    EngineClosedError,
    EngineFailedError,
    NotFiniteError,
    QueueFullError,
    StepEngineError,
    UnknownAdapterError,
    UnknownPipelineError,
)
from deployments.hf_diffusers.stepping.job import (
    Event,
    Job,
    JobOptions,
    JobState,
    PartialImage,
    Progress,
)
from deployments.hf_diffusers.stepping.options import EngineOptions
from deployments.hf_diffusers.stepping.scheduling.row_caps import RowCap, RowCaps
from deployments.hf_diffusers.stepping.statistics import Statistics

__all__ = [
    "DoesNotFitError",
    "EngineClosedError",
    "EngineFailedError",
    "EngineOptions",
    "Event",
    "Job",
    "JobOptions",
    "JobState",
    "NotFiniteError",
    "PartialImage",
    "Progress",
    "QueueFullError",
    "RowCap",
    "RowCaps",
    "Statistics",
    "StepEngine",
    "StepEngineError",
    "UnknownAdapterError",
    "UnknownPipelineError",
]
