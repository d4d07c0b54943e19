"""The `serving` section: how many requests, how many replicas, which adapters, how long."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from truthgpt_serve.body_limits import MAX_BODY_BYTES
from truthgpt_serve.config.base import (
    MAX_REPLICAS,
    Alias,
    Name,
    NonNegativeCount,
    NonNegativeSeconds,
    Refusal,
    ReplicaCount,
    RequestCount,
    Seconds,
    Section,
    Text,
    read_scientific,
    refuse,
)
from truthgpt_serve.config.images import ImagesSection
from truthgpt_serve.config.text_limits import TextLimitsSection

ScalingTarget = Annotated[float, Field(ge=0.001), BeforeValidator(read_scientific)]
"""What scaling divides by: a number of replicas must come out."""


class AutoscalingSection(Section):
    """How the number of replicas follows the load; the names are Ray Serve's."""

    min_replicas: Annotated[int, Field(ge=0, le=MAX_REPLICAS)] = 1
    """Replicas kept without load; 0 frees everything and makes the first request wait for a
    load."""

    max_replicas: ReplicaCount = 1
    """Most replicas under load. More takes more of the cluster."""

    initial_replicas: NonNegativeCount | None = None
    """Replicas started on deployment, between the two above; null means `min_replicas`."""

    target_ongoing_requests: ScalingTarget | None = None
    """Requests per replica that scaling aims at, those that wait there included. Less scales up
    earlier, for lower latency on more replicas. Null means 0.7 of `max_ongoing_requests`. Not
    together with `target_queue_s`."""

    target_queue_s: ScalingTarget | None = None
    """Seconds that a request may wait, for scaling by the work that waits instead of the number of
    requests: prompt tokens, image steps times megapixels, or requests times their mean time. Null
    scales by `target_ongoing_requests`."""

    upscale_delay_s: NonNegativeSeconds | None = None
    """Seconds of higher load before replicas are added. More ignores longer bursts. Null means 30,
    and 0 with `target_queue_s`, where two samples, 2 s apart, must ask for more anyway."""

    downscale_delay_s: NonNegativeSeconds = 600
    """Seconds of lower load before replicas are removed. More keeps idle replicas longer."""

    downscale_to_zero_delay_s: NonNegativeSeconds | None = None
    """Seconds without load before the last replica goes, with `min_replicas` 0; null means
    `downscale_delay_s`."""

    @model_validator(mode="after")
    def _check_order(self) -> AutoscalingSection:
        low, high, initial = self.min_replicas, self.max_replicas, self.initial_replicas
        found = []
        if low > high:
            message = f"{low} is more than max_replicas, which is {high}"
            fix = "lower it, or raise max_replicas"
            found.append(Refusal("min_replicas", message, fix, ("max_replicas",)))
        elif initial is not None and not low <= initial <= high:
            message = f"{initial} is not between min_replicas {low} and max_replicas {high}"
            uses = ("min_replicas", "max_replicas")
            fix = "leave it out for min_replicas"
            found.append(Refusal("initial_replicas", message, fix, uses))
        if self.downscale_to_zero_delay_s is not None and low > 0:
            message = f"has no effect with min_replicas {low}"
            fix = "set min_replicas: 0"
            found.append(Refusal("downscale_to_zero_delay_s", message, fix, ("min_replicas",)))
        if self.target_queue_s is not None and self.target_ongoing_requests is not None:
            message = f"{self.target_queue_s:g} is given together with target_ongoing_requests"
            found.append(Refusal("target_queue_s", message, "keep one of them"))
        if found:
            raise refuse(found)
        return self


class AdapterSection(Section):
    """One LoRA adapter, a model name of its own."""

    name: Name
    """Model name that clients send. Unique in the whole service."""

    path: Text
    """Hub name or local folder of the adapter; looked up like `model.name_or_path`."""


class BatchingSection(Section):
    """How single requests become batches, for a class with `infer_batch`.

    A request that finds the model idle starts at once; those that come while a batch runs are the
    next one. Engines that batch by themselves ignore it.
    """

    max_batch_size: RequestCount | None = None
    """Most requests in one call. More raises throughput and memory. Above 64, the default of
    `max_ongoing_requests` grows with it. Null takes what the class says: 256 for embeddings by
    transformers, 8 for a class that says nothing."""

    batch_wait_timeout_s: NonNegativeSeconds = 0.01
    """Longest pause between two batches, in seconds, for clients that have just been answered and
    are about to ask again. It is shorter, or none, where the measured cost of a call says that
    waiting does not pay. More fills batches of a model with a high fixed cost better; 0 never
    waits."""


class ServingSection(Section):
    """How the model is served."""

    max_ongoing_requests: RequestCount | None = None
    """Requests that one replica works on at the same time. More raises throughput until the engine
    is full, then only latency. Null takes the engine's own limit for vLLM, 64 for other families
    that batch or stream, 1 for a class that has only `infer`."""

    max_queued_requests: RequestCount | None = None
    """Requests that wait in each replica, beside those that it works on; beyond it a client gets
    429. More refuses later and makes waiting longer. Null means twice `max_ongoing_requests`."""

    num_replicas: ReplicaCount | None = None
    """Replicas when not autoscaled; null means 1. Not together with `autoscaling`."""

    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = None
    """Replicas on one node at most. 1 keeps them on different nodes, so that the loss of a node
    costs one of them; those for which no node is left wait for one. Null sets no limit."""

    autoscaling: AutoscalingSection | None = None
    """Replicas by load; null for a fixed number."""

    affinity: Literal["auto", "session", "prefix", "none"] = "auto"
    """Which requests stay on one replica, where there are several: `session` those with the same
    header `x-session-id`, or else the same `prompt_cache_key`; `prefix` these, and by the same
    beginning those that have neither, for the replica that has it in its prefix cache; `none`
    spreads all. `auto` is `prefix` for vLLM with its prefix cache, else `session`. A replica that
    is much busier than the others is passed over."""

    aliases: Annotated[list[Alias], Field(max_length=64)] = Field(default_factory=list)
    """Further names that clients may send as `model`, such as `Qwen/Qwen3-0.6B` or `gpt-4o-mini`.
    Unique in the whole service. Answers name the model itself."""

    adapters: list[AdapterSection] = Field(default_factory=list)
    """LoRA adapters served beside the model, each under its own model name. Requests for one that
    cannot be loaded are answered 503 with the reason; the model and the others serve."""

    engine: dict[str, Any] = Field(default_factory=dict)
    """Arguments handed to the engine as they are, checked against the engine's own argument
    names."""

    batching: BatchingSection = Field(default_factory=BatchingSection)
    """Request batching in front of a class with `infer_batch`."""

    images: ImagesSection = Field(default_factory=ImagesSection)
    """Limits of image requests, for the task image-generation."""

    limits: TextLimitsSection = Field(default_factory=TextLimitsSection)
    """How much one request for text or embeddings may ask for."""

    max_body_bytes: Annotated[int, Field(ge=1, le=MAX_BODY_BYTES)] = MAX_BODY_BYTES
    """Largest request body in bytes; a larger one is answered 413. The default is the most that the
    router's `max_body_bytes` can be, so that what it admits is not refused here; less bounds this
    model alone, and what comes to `/models/<name>/` without the router."""

    max_request_s: Seconds = 600
    """Longest time, in seconds, that one request may take. A replica that is replaced finishes its
    requests within it, so more makes redeployment slower to complete. Above 650, raise
    `RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S` in configs/ray.env too."""

    stream_interval_s: NonNegativeSeconds = 0.02
    """Shortest time, in seconds, between two writes of one event stream after its first three.
    Events that come faster share a write: 0.02 touches only streams above 50 tokens per second.
    More saves CPU time on every process on the way to the client; 0 sends each event at once."""

    health_check_period_s: Seconds = 1
    """Seconds between health checks of a replica. More notices a dead process later, which is
    replaced at the next one, and a sick one, which is replaced after three and about 6 s."""

    health_check_timeout_s: Seconds = 10
    """Seconds that a health check may take; three failures in a row replace the replica. More
    tolerates longer stalls."""

    @model_validator(mode="after")
    def _check_replicas(self) -> ServingSection:
        found = []
        if self.num_replicas is not None and self.autoscaling is not None:
            message = f"{self.num_replicas} is given together with serving.autoscaling"
            found.append(Refusal("num_replicas", message, "keep one of them"))
        target = self.autoscaling and self.autoscaling.target_ongoing_requests
        limit = self.max_ongoing_requests
        if target and limit and target > limit:
            message = f"{target:g} is more than serving.max_ongoing_requests, which is {limit}"
            fix = "a replica never gets that many: lower it"
            key = "autoscaling.target_ongoing_requests"
            found.append(Refusal(key, message, fix, ("max_ongoing_requests",)))
        size = self.batching.max_batch_size
        if limit and size and size > limit:
            message = f"{size} is more than serving.max_ongoing_requests, which is {limit}"
            fix = "a replica never gets that many: lower it, or raise max_ongoing_requests"
            key = "batching.max_batch_size"
            found.append(Refusal(key, message, fix, ("max_ongoing_requests",)))
        if found:
            raise refuse(found)
        return self
