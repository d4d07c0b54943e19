"""The `training` section: how `truthgpt train` fits a model."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import model_validator

from truthgpt_serve.config.base import Refusal, refuse
from truthgpt_serve.config.training.images import ImageTraining
from truthgpt_serve.config.training.methods import METHODS
from truthgpt_serve.config.training.samples import SamplesSection
from truthgpt_serve.config.training.text import TextTraining


class TrainingSection(ImageTraining, TextTraining):
    """Hyperparameters of `truthgpt train`; serving ignores them."""

    samples: SamplesSection | None = None
    """Answers or images that the model makes of some prompts at each evaluation, so that one sees
    what it has learned. Null makes none."""

    @model_validator(mode="after")
    def _check_samples(self) -> TrainingSection:
        if self.samples is not None and (found := list(self._samples_refusals())):
            raise refuse(found)
        return self

    def _samples_refusals(self) -> Iterator[Refusal]:
        if METHODS[self.method].head != "language":
            message = f"has no effect with method: {self.method}, whose model writes no text"
            yield Refusal("samples", message, "remove it", ("method",))
        if self.component in ("vae", "controlnet"):
            message = f"has no effect with component: {self.component}"
            fix = "remove it, or train the denoiser"
            yield Refusal("samples", message, fix, ("component",))
