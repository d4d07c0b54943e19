"""The engine of one transformers pipeline: checked inputs, batches of equal parameters.

Speech recognition is in `speech`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
import transformers
from PIL import Image
from transformers.pipelines import PipelineException

from deployments.hf_transformers.attention import choose_attention
from deployments.hf_transformers.compilation import compile_model
from deployments.hf_transformers.config import TransformersSettings
from deployments.hf_transformers.generation.stopping import stop_when_cancelled
from deployments.hf_transformers.loading import (
    LOAD_ERRORS,
    load_config,
    max_input_tokens,
    quantization_options,
    read_source,
)
from deployments.hf_transformers.pipelines.inputs import KINDS, read_inputs
from truthgpt_serve.device import choose_dtype, describe_backend
from truthgpt_serve.errors import ContextLengthError, RequestError, ServerError, bad_setting
from truthgpt_serve.server.text_sizes import check_beginning

logger = logging.getLogger(__name__)

TRIAL_EDGE = 64
TRIAL_SAMPLES = 16000
DEFAULTS: dict[str, dict[str, Any]] = {"text-classification": {"top_k": 1}}
"""Parameters that make a task's outputs the same for one input and for many."""


class PipelineEngine:
    """Loads a pipeline and runs it; one thread at a time.

    Args:
        cfg: The whole configuration as a nested dict.

    Attributes:
        task: The pipeline's task.
        pipeline: Transformers' object.
        settings: The family's settings.
        attention: The attention that computes.
        acceleration: The model's backend, for its card.

    Raises:
        ConfigError: The weights cannot be loaded, or the machine cannot do what is asked for.
    """

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self.settings = TransformersSettings.model_validate(cfg["serving"]["engine"])
        self.task = str(self.settings.pipeline_task)
        self.kind = KINDS[self.task]
        self.pipeline = _load(self.task, cfg)
        self._max_tokens: int | None = None
        if self.kind.name == "text":
            self._max_tokens = max_input_tokens(self.pipeline.model.config, self.pipeline.tokenizer)
        self._prepare_batches()
        stop_when_cancelled(self.pipeline.model)
        wanted = str(cfg["model_optim"]["attention"])
        self.attention = choose_attention(wanted, self.pipeline.model, self._trial)
        if cfg["model_optim"]["compile"]:
            compile_model(self.pipeline.model, self.settings.compile_mode, [self._trial] * 2)
        self.acceleration = describe_backend(
            self.pipeline.model.device,
            self.pipeline.model.dtype,
            self.attention,
            cfg["model_optim"],
        )
        logger.info("pipeline: %s; attention: %s", self.task, self.attention)

    def _prepare_batches(self) -> None:
        tokenizer = self.pipeline.tokenizer
        if tokenizer is not None and tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token

    def _trial(self) -> torch.Tensor:
        """Runs the pipeline on two samples; returns the numbers in its outputs."""
        samples = [self.sample(), self.sample()]
        read = [self.check(sample) for sample in samples]
        outputs = self.run([value for value, _ in read], read[0][1])
        return torch.tensor([*_numbers(outputs), 0.0])

    def sample(self) -> dict[str, Any]:
        """Returns inputs that the pipeline takes, for trials."""
        text = "a trial"
        if self.task == "fill-mask":
            text += f" {self.pipeline.tokenizer.mask_token}"
        noise = numpy.random.default_rng(0)
        pixels = noise.integers(0, 256, (TRIAL_EDGE, TRIAL_EDGE, 3), dtype=numpy.uint8)
        samples: dict[str, Any] = {
            "text": text,
            "image": Image.fromarray(pixels),
            "audio": noise.standard_normal(TRIAL_SAMPLES).astype(numpy.float32) / 10,
        }
        labels = {"candidate_labels": ["one", "two"]} if self.kind.required else {}
        return {self.kind.name: samples[self.kind.name], **labels}

    # -- requests

    def batch_key(self, inputs: Mapping[str, Any]) -> str:
        """Returns what inputs must have in common to share a batch."""
        rest = {name: value for name, value in inputs.items() if name != self.kind.name}
        size = ""
        if self.kind.equal_sizes:
            size = str(getattr(inputs.get(self.kind.name), "size", ""))
        return f"{sorted(rest.items(), key=str)!r} {size}"

    def infer_batch(self, batch: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Runs the pipeline on many inputs.

        Returns:
            For each what the pipeline gives, or the RequestError of one with a wrong input.
        """
        answers: list[Any] = [None] * len(batch)
        groups: dict[str, list[int]] = {}
        read: dict[int, tuple[Any, dict[str, Any]]] = {}
        for place, inputs in enumerate(batch):
            try:
                read[place] = self.check(inputs)
            except RequestError as error:
                answers[place] = error
            else:
                groups.setdefault(self.batch_key(inputs), []).append(place)
        for places in groups.values():
            values = [read[place][0] for place in places]
            outputs = self.run(values, read[places[0]][1])
            for place, output in zip(places, outputs, strict=True):
                answers[place] = output
        return answers

    def check(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Returns the value and the parameters of one request. Raises RequestError."""
        value, parameters = read_inputs(inputs, self.kind)
        if self.kind.name == "text" and self._max_tokens is not None:
            check_beginning(value, self._max_tokens, self._count, param="inputs.text")
            num_tokens = self._count(value)
            if num_tokens > self._max_tokens:
                raise ContextLengthError(self._max_tokens, num_tokens, param="inputs.text")
        return value, parameters

    def _count(self, text: str) -> int:
        return len(self.pipeline.tokenizer(text, verbose=False)["input_ids"])

    def run(self, values: list[Any], parameters: Mapping[str, Any]) -> list[Any]:
        """Runs one batch with the same parameters."""
        parameters = {**DEFAULTS.get(self.task, {}), **parameters}
        try:
            with torch.inference_mode():
                outputs = self.pipeline(values, batch_size=len(values), **parameters)
        except (ValueError, KeyError, PipelineException) as error:
            # Pipelines check what they are given with these; the model's own faults are others.
            raise RequestError(f"the {self.task} pipeline refuses the inputs: {error}") from error
        # That one takes a single output out of its list.
        outputs = [outputs] if self.task == "fill-mask" and len(values) == 1 else list(outputs)
        if len(outputs) != len(values):
            message = f"the pipeline gave {len(outputs)} outputs for {len(values)} inputs"
            raise ServerError(message)
        return outputs


def _numbers(value: Any) -> list[float]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int | float):
        return [float(value)]
    if isinstance(value, Mapping):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    if isinstance(value, torch.Tensor):
        return [float(number) for number in value.float().flatten()[:64]]
    return []


def _load(task: str, cfg: Mapping[str, Any]) -> Any:
    source = read_source(cfg)
    config = load_config(source)
    dtype = choose_dtype(source.dtype, getattr(config, "dtype", None), source.device, torch)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if source.quantization is None:
        options["device"] = source.device
    else:
        options["model_kwargs"] = quantization_options(source, dtype)
    try:
        return transformers.pipeline(
            task, model=source.name_or_path, revision=source.revision, **options
        )
    except LOAD_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        message = f"{source.name_or_path!r} cannot be loaded for {task}: {reason}"
        raise bad_setting("model.name_or_path", message) from error
