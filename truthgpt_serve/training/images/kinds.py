"""The kinds of pipelines that can be trained, and the inputs of their denoisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.draws import LatentShape
from truthgpt_serve.training.images.data.image_files import Size
from truthgpt_serve.training.images.objectives import Diffusion, Objective, RectifiedFlow

Conditions = dict[str, Any]

UNET_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Linear layers that get an adapter unless `model_optim.lora.target_modules` names others."""
JOINT_LAYERS = (*UNET_LAYERS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


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

    def unet_arguments(self, conditions: Conditions, places: Any) -> dict[str, Any]:
        """Returns the arguments of a UNet, or of its ControlNet, beside latents and timesteps.

        Args:
            conditions: Of each example.
            places: Sizes and cuts of the images, float32 of shape (batch, 6); see `Loaded`.
        """
        return dict(conditions)

    def predict(
        self,
        denoiser: Any,
        noisy: Any,
        timesteps: Any,
        conditions: Conditions,
        places: Any,
        **more: Any,
    ) -> Any:
        """Returns the denoiser's output, of the latents' shape.

        Args:
            denoiser: To call.
            noisy: Latents, shape (batch, channels, height, width).
            timesteps: Of each.
            conditions: Of each.
            places: See `unet_arguments`.
            **more: Further arguments of the denoiser, such as the residuals of a ControlNet.
        """
        arguments = self.unet_arguments(conditions, places)
        return denoiser(noisy, timesteps, return_dict=False, **arguments, **more)[0]


class XLKind(Kind):
    """SDXL: two text encoders, a pooled embedding, and the image's size."""

    encoder_names = ("text_encoder", "text_encoder_2")
    trained_encoder_names = encoder_names

    def encode(self, captions: list[str], device: Any) -> Conditions:
        """Returns embeddings and pooled embeddings."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "text_embeds": pooled}

    def encode_nothing(self, device: Any) -> Conditions:
        """Returns zeros where the pipeline guides with zeros."""
        conditions = self.encode([""], device)
        if not self.pipeline.config.get("force_zeros_for_empty_prompt"):
            return conditions
        return {name: torch.zeros_like(value) for name, value in conditions.items()}

    def normalize(self, latents: Any) -> Any:
        """Returns the latents scaled; a VAE may give statistics of each channel."""
        vae = self.vae.config
        mean, std = vae.get("latents_mean"), vae.get("latents_std")
        if mean is None or std is None:
            return super().normalize(latents)
        mean, std = (
            torch.tensor(one, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
            for one in (mean, std)
        )
        return (latents - mean) * vae.scaling_factor / std

    def unet_arguments(self, conditions: Conditions, places: Any) -> dict[str, Any]:
        """Adds the pooled embeddings, the size of each image and where it was cut."""
        embeds = conditions["encoder_hidden_states"]
        added = {"text_embeds": conditions["text_embeds"], "time_ids": places.to(embeds.dtype)}
        return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}


class FlowKind(Kind):
    """The base of the transformers that are trained by flow matching."""

    denoiser_name = "transformer"
    lora_layers = JOINT_LAYERS
    shifts_latents = True
    patch = 2
    learns_words = False
    takes_controlnet = False

    def objective(self, min_snr_gamma: float | None) -> Objective:
        """Returns rectified flow, which has no signal-to-noise weight."""
        if min_snr_gamma is not None:
            name = type(self.pipeline).__name__
            message = f"training.min_snr_gamma: {name} is trained by flow matching, without it"
            raise TrainingError(f"{message} (remove it)")
        return RectifiedFlow(self.pipeline.scheduler, self.log_shift())

    def log_shift(self) -> float:
        """Returns the log of the shift to noise for images of this size; see `RectifiedFlow`."""
        return 0.0


class SD3Kind(FlowKind):
    """Stable Diffusion 3."""

    encoder_names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    trained_encoder_names = ("text_encoder", "text_encoder_2")  # the T5 encoder stays as it is

    def encode(self, captions: list[str], device: Any) -> Conditions:
        """Returns embeddings and pooled embeddings."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            captions,
            prompt_2=None,
            prompt_3=None,
            device=device,
            do_classifier_free_guidance=False,
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def predict(
        self,
        denoiser: Any,
        noisy: Any,
        timesteps: Any,
        conditions: Conditions,
        places: Any,
        **more: Any,
    ) -> Any:
        """Returns the transformer's output."""
        return denoiser(
            hidden_states=noisy, timestep=timesteps, return_dict=False, **conditions, **more
        )[0]


class FluxKind(FlowKind):
    """FLUX.1: a transformer over patches of 2x2 latents."""

    encoder_names = ("text_encoder", "text_encoder_2")
    trained_encoder_names = ("text_encoder",)  # the T5 encoder stays as it is

    def log_shift(self) -> float:
        """Returns the pipeline's own for images of this size."""
        scheduler = self.pipeline.scheduler.config
        _, height, width = self.image_shape()
        num_patches = height * width // 4
        shift: float = calculate_shift(
            num_patches,
            scheduler.base_image_seq_len,
            scheduler.max_image_seq_len,
            scheduler.base_shift,
            scheduler.max_shift,
        )
        return shift

    def encode(self, captions: list[str], device: Any) -> Conditions:
        """Returns embeddings and pooled embeddings."""
        embeds, pooled, _ = self.pipeline.encode_prompt(captions, prompt_2=None, device=device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def predict(
        self,
        denoiser: Any,
        noisy: Any,
        timesteps: Any,
        conditions: Conditions,
        places: Any,
        **more: Any,
    ) -> Any:
        """Packs, calls and unpacks; the distilled guidance is 1, the data as it is."""
        count, channels, height, width = noisy.shape
        pipeline, embeds = self.pipeline, conditions["encoder_hidden_states"]
        guidance = noisy.new_ones(count) if self.denoiser.config.guidance_embeds else None
        places = pipeline._prepare_latent_image_ids(
            count, height // 2, width // 2, noisy.device, noisy.dtype
        )
        output = denoiser(
            hidden_states=pipeline._pack_latents(noisy, count, channels, height, width),
            timestep=timesteps / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=guidance,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=places,
            return_dict=False,
            **conditions,
            **more,
        )[0]
        factor = pipeline.vae_scale_factor
        return pipeline._unpack_latents(output, height * factor, width * factor, factor)


KINDS: dict[str, type[Kind]] = {
    "StableDiffusionPipeline": Kind,
    "StableDiffusionXLPipeline": XLKind,
    "StableDiffusion3Pipeline": SD3Kind,
    "FluxPipeline": FluxKind,
}
"""By the name of the pipeline's class."""


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Returns how many pixels an element of a latent stands for, along an edge."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def create_kind(pipeline: Any, data: Mapping[str, Any]) -> Kind:
    """Returns the pipeline's kind.

    Args:
        pipeline: A pipeline of Diffusers.
        data: The section `data` of the configuration.

    Raises:
        TrainingError: Pipelines of this class cannot be trained, or not at these sizes.
    """
    name = type(pipeline).__name__
    vae = type(getattr(pipeline, "vae", None))
    if name not in KINDS or not issubclass(vae, AutoencoderKL):
        message = f"model.name_or_path: {name} with {vae.__name__} cannot be trained"
        raise TrainingError(f"{message} (with AutoencoderKL these can: {', '.join(KINDS)})")
    return KINDS[name](pipeline, data)
