"""The image engine of one replica: pipelines, limits and the step-batching engine put together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from deployments.hf_diffusers.config import DiffusersSettings, default_ongoing_requests
from deployments.hf_diffusers.inputs.image_inputs import check_size, default_size
from deployments.hf_diffusers.inputs.images import to_image
from deployments.hf_diffusers.inputs.prompts import PromptCounter
from deployments.hf_diffusers.inputs.requests import (
    Capabilities,
    ImageCall,
    expected_work,
    plan_call,
)
from deployments.hf_diffusers.metrics import format_metrics
from deployments.hf_diffusers.pipelines.info import (
    IMAGE_TO_IMAGE,
    TEXT_TO_IMAGE,
    PipelineInfo,
    read_info,
)
from deployments.hf_diffusers.pipelines.loading import Loaded, load_pipelines
from deployments.hf_diffusers.pipelines.optimization import batch_buckets, optimize
from deployments.hf_diffusers.pipelines.schedulers import Schedulers
from deployments.hf_diffusers.stepping import (
    DoesNotFitError,
    EngineClosedError,
    EngineFailedError,
    EngineOptions,
    Event,
    Job,
    NotFiniteError,
    PartialImage,
    QueueFullError,
    Statistics,
    StepEngine,
)
from truthgpt_serve.config.paths import expand
from truthgpt_serve.errors import (
    RequestError,
    ServerError,
    TruthGPTError,
    UnavailableError,
)
from truthgpt_serve.queue_full import queue_full

logger = logging.getLogger(__name__)

MAX_IMAGES = 10
"""Images of one HTTP request, each of which is a job of its own."""
CLOSE_TIMEOUT_S = 20.0
PROFILED_EDGES = (0.5, 1, 2)
"""Sizes whose batches are measured at start, as a factor of the default size's edges."""


class ImageEngine:
    """Loads a model and makes images with it. All methods are thread-safe.

    Args:
        cfg: The whole configuration as a nested dict.

    Attributes:
        acceleration: The model's backend, for its card.

    Raises:
        ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        settings = DiffusersSettings.model_validate(cfg["serving"]["engine"])
        loaded = load_pipelines(cfg, settings)
        info = {name: read_info(pipeline, name) for name, pipeline in loaded.pipelines.items()}
        mode, self.acceleration = optimize(loaded, info, cfg, settings)
        defaults = next(iter(info.values())).defaults
        self.capabilities = Capabilities(
            info=info,
            settings=settings,
            counter=PromptCounter(loaded.base, settings.max_prompt_tokens, defaults),
            schedulers=Schedulers(loaded.base.scheduler, settings.schedulers),
            adapters=tuple(loaded.adapters.names),
            failed_adapters=loaded.adapters.failed,
            checks_images=getattr(loaded.base, "safety_checker", None) is not None,
        )
        self._loaded = loaded
        self._engine = StepEngine(_options(cfg, settings))
        try:
            for name, pipeline in loaded.pipelines.items():
                self._engine.add_pipeline(
                    name, pipeline, mode=mode, adapters=tuple(loaded.adapters.names.values())
                )
            self.acceleration["batching"] = self._engine.mode(next(iter(loaded.pipelines)))
            self._profile(loaded, info, settings)
        except BaseException:
            self._engine.close(CLOSE_TIMEOUT_S)
            raise

    def _profile(
        self, loaded: Loaded, info: Mapping[str, PipelineInfo], settings: DiffusersSettings
    ) -> None:
        wanted = settings.profile_rows
        if wanted is None:
            wanted = loaded.device.type == "cuda"
        name, first = next(iter(info.items()))
        if not wanted or self._engine.mode(name) != "batched" or first.takes("image"):
            return
        started = time.perf_counter()
        calls = [self.plan(inputs) for inputs in self._trial_inputs(first, settings)]
        caps = self._engine.profile(name, [call.arguments for call in calls])
        logger.info("row caps, measured in %.1f s: %s", time.perf_counter() - started, caps)

    def _trial_inputs(
        self, info: PipelineInfo, settings: DiffusersSettings
    ) -> Iterator[dict[str, Any]]:
        """Yields requests of the default size, half and twice its edges, as far as allowed."""
        width, height = default_size(info, settings)
        for factor in PROFILED_EDGES:
            size = {"width": int(width * factor), "height": int(height * factor)}
            try:
                check_size(size["width"], size["height"], info, settings)
            except RequestError:
                continue
            yield {"prompt": "a trial", "steps": 2, "seed": 0, **size}

    @property
    def operations(self) -> tuple[str, ...]:
        """What the model can do for a client: `generation`, `edit`, `variation`."""
        info = self.capabilities.info
        edits = [name for name in info if name != TEXT_TO_IMAGE]
        found = {
            "generation": TEXT_TO_IMAGE in info,
            "edit": bool(edits),
            "variation": IMAGE_TO_IMAGE in info,
        }
        return tuple(name for name, can in found.items() if can)

    def plan(self, inputs: Mapping[str, Any]) -> ImageCall:
        """Checks a request and prepares its images; may take tens of milliseconds.

        Raises:
            RequestError: An input is wrong.
        """
        return plan_call(inputs, self.capabilities)

    def expected_work(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """Returns about how many steps and pixels an image takes.

        Raises:
            RequestError: An input is wrong.
        """
        return expected_work(inputs, self.capabilities)

    def submit(self, call: ImageCall, on_event: Callable[[Event], None] | None = None) -> Job:
        """Starts an image.

        Args:
            call: What `plan` returned.
            on_event: Called on the engine's thread with each step; it must not block.

        Raises:
            OverloadedError: The queue is full.
            UnavailableError: The engine is closed, or failed.
        """
        try:
            names = self._loaded.adapters.names
            weights = {names[name]: weight for name, weight in call.options.adapters.items()}
            options = replace(call.options, adapters=weights, on_event=on_event)
            return self._engine.submit(call.pipeline, call.arguments, options)
        except Exception as error:
            raise translate(error) from error

    def cancel(self, job: Job) -> None:
        """Ends a job within one denoising step."""
        self._engine.cancel(job)

    def finish(self, call: ImageCall, job: Job) -> dict[str, Any]:
        """Returns the answer of a job that is done; converts pixels, so it takes milliseconds.

        Returns:
            `image`, `seed`, `num_steps` and `usage`.

        Raises:
            TruthGPTError: The job failed.
        """
        try:
            output = job.result(0)
        except Exception as error:
            raise translate(error) from error
        if any(getattr(output, "nsfw_content_detected", None) or ()):
            raise RequestError(
                "the model's safety checker refuses the image: change the prompt or the seed",
                code="content_policy_violation",
            )
        image = to_image(output.images[0])
        usage = self.count_usage(call, image)
        made = {"image": image, "seed": call.seed, "num_steps": call.options.num_steps}
        return {**made, **({"usage": usage} if usage else {})}

    def megapixel_steps(self, call: ImageCall, job: Job) -> float:
        """Returns what has been made of an image that is not done: steps times megapixels."""
        arguments, image = call.arguments, call.arguments.get("image")
        if "width" in arguments:
            width, height = arguments["width"], arguments["height"]
        elif isinstance(image, Image.Image):
            width, height = image.size
        else:
            capabilities = self.capabilities
            width, height = default_size(capabilities.info[call.pipeline], capabilities.settings)
        return float(job.progress.step * width * height / 1e6)

    @staticmethod
    def convert(event: PartialImage) -> dict[str, Any]:
        """Returns a stream's item for a preview of an unfinished image."""
        return {"partial_image": to_image(event.image), "index": event.index}

    def count_usage(self, call: ImageCall, image: Image.Image) -> dict[str, int]:
        """Returns the tokens of the prompts, and as output the latent patches of the image.

        A patch is what the denoiser reads as one position: 8x8 pixels for a UNet, usually 16x16
        for a transformer.
        """
        patch = self.capabilities.info[call.pipeline].patch
        patches = (image.width // patch) * (image.height // patch)
        if call.input_tokens is None:
            return {}
        return {"input_tokens": call.input_tokens, "output_tokens": patches}

    def statistics(self) -> Statistics:
        """Returns what the engine has done."""
        return self._engine.statistics()

    def metrics(self) -> str:
        """Returns the same in Prometheus' text format."""
        return format_metrics(self._engine.statistics())

    def check_health(self) -> None:
        """Raises `UnavailableError` when the engine's thread has ended."""
        if not self._engine.alive:
            raise UnavailableError("the image engine's thread has ended")

    def close(self) -> None:
        """Cancels what runs and ends the engine's thread; safe to call twice."""
        self._engine.close(CLOSE_TIMEOUT_S)


def translate(error: Exception) -> TruthGPTError:
    """Returns the error that a client sees for one of the engine's or the pipeline's."""
    if isinstance(error, TruthGPTError):
        return error
    if isinstance(error, QueueFullError):
        return queue_full("the image engine", error.num_requests)
    if isinstance(error, (EngineClosedError, EngineFailedError)):
        return UnavailableError(f"the image engine has ended: {error}")
    if isinstance(error, NotFiniteError):
        return ServerError(f"the model gave no image: {error}", code="not_finite")
    if isinstance(error, DoesNotFitError):
        return ServerError(
            f"the image does not fit into the device's memory: {error}", code="out_of_memory"
        )
    return ServerError(f"the pipeline failed: {type(error).__name__}: {error}")


def _options(cfg: Mapping[str, Any], settings: DiffusersSettings) -> EngineOptions:
    ongoing = cfg["serving"]["max_ongoing_requests"] or default_ongoing_requests(cfg)
    file = settings.row_caps_file
    return EngineOptions(
        max_rows=settings.max_rows,
        max_ongoing=ongoing,
        max_queued=MAX_IMAGES * ongoing,
        row_caps_file=None if file is None else expand(file),
        batch_buckets=batch_buckets(settings, compiled=bool(cfg["model_optim"]["compile"])),
    )
