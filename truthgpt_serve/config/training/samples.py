"""The `training.samples` section: what a model makes of some prompts while it learns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from truthgpt_serve.config.base import Count, NonNegativeNumber, PositiveNumber, Section, Text

MAX_PROMPTS = 16
MAX_PROMPT_CHARS = 8_000
MAX_NEW_TOKENS = 2_048
MAX_TIMEOUT_S = 600

PromptText = Annotated[Text, Field(max_length=MAX_PROMPT_CHARS)]


class SampleMessage(Section):
    """A message of a chat."""

    role: Literal["system", "user", "assistant"]
    """Who says it."""

    content: PromptText
    """What is said."""


Prompt = PromptText | Annotated[list[SampleMessage], Field(min_length=1, max_length=32)]


class SamplesSection(Section):
    """Samples of each evaluation, and as often where there is nothing to evaluate on."""

    prompts: Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    """What samples are made of: texts that a text model continues as they stand, lists of messages
    (`role`, `content`) that it answers by its chat template, or captions of an image model."""

    max_new_tokens: Annotated[Count, Field(le=MAX_NEW_TOKENS)] = 64
    """Longest sample of a text model, in tokens. More takes longer."""

    temperature: NonNegativeNumber = 0.0
    """How freely a text model samples; 0 takes the most probable token. Above 0 the draws are the
    same at each evaluation, by `seed`, as are those of images."""

    steps: Count | None = None
    """Denoising steps of an image; null takes the pipeline's own default."""

    timeout_s: Annotated[PositiveNumber, Field(le=MAX_TIMEOUT_S)] = 60.0
    """Seconds that all samples of one evaluation may take; what is not done then is left out. The
    other workers wait for the first one, which makes them."""
