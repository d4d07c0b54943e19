"""The inputs of a denoiser: those of Stable Diffusion 1 and 2, and the base of the other kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.draws import LatentShape
from truthgpt_serve.training.images.data.image_files import Size
from truthgpt_serve.training.images.objectives import Diffusion, Noised, Objective

Conditions = dict[str, Any]

UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Linear layers that get an adapter unless `model_optim.lora.target_modules` names others."""
ENCODER_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Those of a text encoder, where it is trained too."""


class Kind:
    """Stable Diffusion 1 and 2, and the base of the others.

    Args:
        pipeline: A pipeline of Diffusers.
        data: The section `data` of the configuration.
    """

    denoiser_name = "unet"
    encoder_names: tuple[str, ...] = ("text_encoder",)
    trained_encoder_names: tuple[str, ...] = ("text_encoder",)
    lora_layers: tuple[str, ...] = UNET_LAYERS
    shifts_latents = False
    """Whether the pipeline takes the VAE's `shift_factor` into account."""
    patch = 1
    """Edge of the latent's patches that the denoiser reads as one position, if it insists."""

    learns_words = True
    """Whether textual inversion is known for the pipeline."""
    takes_controlnet = True
    """Whether training a ControlNet is known for the pipeline."""

    def __init__(self, pipeline: Any, data: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.resolution: int = data["resolution"]
        self.vae = pipeline.vae
        self.check_sizes(data, self.vae.config)
        factor = vae_factor(self.vae.config)
        self.latent_shape = LatentShape(self.vae.config.latent_channels, factor)

    @classmethod
    def check_sizes(cls, data: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        """Checks that images of the sizes of the configuration become whole patches of latents.

        Args:
            data: The section `data` of the configuration.
            vae: Configuration of the autoencoder.

        Raises:
            TrainingError: They do not.
        """
        multiple = vae_factor(vae) * cls.patch
        keys = ["resolution", "bucket_step"] if data["aspect_ratio_buckets"] else ["resolution"]
        for key in keys:
            if data[key] % multiple:
                message = f"data.{key}: {data[key]} does not suit the model's latents"
                raise TrainingError(f"{message} (write a multiple of {multiple})")

    def image_shape(self) -> tuple[int, ...]:
        """Returns the shape of the latent of an image of `data.resolution`."""
        return self.latent_shape(Size(self.resolution, self.resolution))

    @property
    def denoiser(self) -> Any:
        """The module that is trained."""
        return getattr(self.pipeline, self.denoiser_name)

    def objective(self, min_snr_gamma: float | None) -> Objective:
        """Returns what the denoiser learns."""
        return Diffusion(self.pipeline.scheduler, min_snr_gamma)

    def encode(self, captions: list[str], device: Any) -> Conditions:
        """Returns what the denoiser is told of each caption, first dimension the captions."""
        embeds, _ = self.pipeline.encode_prompt(captions, device, 1, False)
        return {"encoder_hidden_states": embeds}

    def encode_nothing(self, device: Any) -> Conditions:
        """Returns what the pipeline's guidance compares with: usually the empty caption's."""
        return self.encode([""], device)

    def normalize(self, latents: Any) -> Any:
        """Returns the VAE's latents as the denoiser sees them: shifted, if it is so, and scaled."""
        vae = self.vae.config
        shift = (vae.shift_factor or 0.0) if self.shifts_latents else 0.0
        return (latents - shift) * vae.scaling_factor

    def unet_arguments(self, conditions: Conditions, time_ids: Any) -> dict[str, Any]:
        """Returns the arguments of a UNet, or of its ControlNet, beside latents and timesteps.

        Args:
            conditions: Of each example.
            time_ids: Sizes and cuts of the images, float32 of shape (batch, 6); see `Loaded`.
        """
        return dict(conditions)

    def predict(self, denoiser: Any, noised: Noised, conditions: Conditions, **more: Any) -> Any:
        """Returns the denoiser's output, of the latents' shape.

        Args:
            denoiser: To call.
            noised: The batch.
            conditions: Of each example.
            **more: Further arguments of the denoiser, such as the residuals of a ControlNet.
        """
        arguments = self.unet_arguments(conditions, noised.time_ids)
        return denoiser(noised.noisy, noised.timesteps, return_dict=False, **arguments, **more)[0]


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Returns how many pixels an element of a latent stands for, along an edge."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))
