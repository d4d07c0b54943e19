"""Settings of the `training` section that only image models read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from truthgpt_serve.config.base import (
    Count,
    NonNegativeNumber,
    PositiveNumber,
    Ratio,
    Refusal,
    Section,
    Text,
    refuse,
)

MAX_PRIOR_IMAGES = 10_000
"""Images of the class that one run may make: a slip of the finger would else take days."""


class PriorSection(Section):
    """Prior preservation (DreamBooth): images of the class that are learned beside the data."""

    prompt: Text
    """Caption of each image of the class, such as `a photo of a dog` beside data about one dog."""

    images: Text | None = None
    """Folder with images of the class. Those that are missing to `num_images` are made by the
    model itself before training, into the run's folder."""

    num_images: Annotated[Count, Field(le=MAX_PRIOR_IMAGES)] = 100
    """Images of the class. More keeps more of what the model knows, and takes longer to make."""

    weight: NonNegativeNumber = 1.0
    """Weight of the loss of these images. More keeps the class closer to what it was."""

    steps: Count | None = None
    """Denoising steps of the images that are made; null takes the pipeline's own default."""


class TextualInversionSection(Section):
    """The word that `component: textual_inversion` learns."""

    placeholder: Annotated[Text, Field(pattern=r"^\S+$")]
    """The learned word, such as `<toy>`: one that the tokenizer does not know. Each caption must
    have it."""

    initializer: Text
    """A word of one token that means about the same, such as `toy`: what learning starts from."""

    num_vectors: Annotated[Count, Field(le=32)] = 1
    """Vectors of the learned word. More can tell more, and takes as many tokens of a prompt."""


class ImageTraining(Section):
    """What of an image model is trained, and how its loss is weighed."""

    component: Literal["denoiser", "vae", "controlnet", "textual_inversion"] = "denoiser"
    """What of an image model is trained. `vae` trains the encoder and decoder of latents, which a
    model made from nothing needs first; `controlnet` a ControlNet that follows
    `data.conditioning_field`; `textual_inversion` one word, the model staying as it is."""

    textual_inversion: TextualInversionSection | None = None
    """The word that `component: textual_inversion` learns."""

    prior: PriorSection | None = None
    """Prior preservation: images of the class that are learned beside the data, so that a few
    images of one thing do not change all things of its kind. Each step reads twice as many
    images."""

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

    @model_validator(mode="after")
    def _check_component(self) -> ImageTraining:
        found = []
        learns_word = self.component == "textual_inversion"
        if learns_word and self.textual_inversion is None:
            message = "is required by component: textual_inversion"
            fix = "name placeholder and initializer"
            found.append(Refusal("textual_inversion", message, fix, ("component",)))
        if not learns_word and self.textual_inversion is not None:
            message = f"has no effect with component: {self.component}"
            fix = "remove it, or set component: textual_inversion"
            found.append(Refusal("textual_inversion", message, fix, ("component",)))
        if self.prior is not None and self.component != "denoiser":
            message = f"has no effect with component: {self.component}"
            fix = "remove it, or train the denoiser"
            found.append(Refusal("prior", message, fix, ("component",)))
        if found:
            raise refuse(found)
        return self
