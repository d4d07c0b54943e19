"""Settings of the `training` section that only image models read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from truthgpt_serve.config.base import PositiveNumber, Ratio, Section


class ImageTraining(Section):
    """What of an image model is trained, and how its loss is weighed."""

    component: Literal["denoiser", "vae"] = "denoiser"
    """Part of an image model that is trained. `vae` trains the encoder and decoder of latents,
    which a model made from nothing needs first."""

    train_text_encoder: bool = False
    """Train the text encoder of an image model together with its denoiser. True takes more
    memory."""

    ema_decay: Annotated[Ratio, Field(lt=1)] = 0.0
    """Decay of the running average of an image model's weights, which is then the result; 0
    switches it off. More averages over more steps, and a second copy takes memory."""

    caption_dropout: Ratio = 0.0
    """Share of captions that an image model sees as empty, so that guidance works when it is
    served; 0.1 is usual for a model made from nothing. More weakens the captions."""

    min_snr_gamma: PositiveNumber | None = None
    """Bound of the signal-to-noise weight of an image model's loss, such as 5; null weighs all
    noise levels alike. More comes closer to null."""
