"""The inputs of the transformers that are trained by flow matching."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.kinds.base import UNET_LAYERS, Conditions, Kind
from truthgpt_serve.training.images.objectives import Noised, Objective, RectifiedFlow

JOINT_LAYERS = (*UNET_LAYERS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


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

    def predict(self, denoiser: Any, noised: Noised, conditions: Conditions, **more: Any) -> Any:
        """Returns the transformer's output."""
        return denoiser(
            hidden_states=noised.noisy,
            timestep=noised.timesteps,
            return_dict=False,
            **conditions,
            **more,
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

    def predict(self, denoiser: Any, noised: Noised, conditions: Conditions, **more: Any) -> Any:
        """Packs, calls and unpacks; the distilled guidance is 1, the data as it is."""
        noisy = noised.noisy
        count, channels, height, width = noisy.shape
        pipeline, embeds = self.pipeline, conditions["encoder_hidden_states"]
        guidance = noisy.new_ones(count) if self.denoiser.config.guidance_embeds else None
        image_ids = pipeline._prepare_latent_image_ids(
            count, height // 2, width // 2, noisy.device, noisy.dtype
        )
        output = denoiser(
            hidden_states=pipeline._pack_latents(noisy, count, channels, height, width),
            timestep=noised.timesteps / self.pipeline.scheduler.config.num_train_timesteps,
            guidance=guidance,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=image_ids,
            return_dict=False,
            **conditions,
            **more,
        )[0]
        factor = pipeline.vae_scale_factor
        return pipeline._unpack_latents(output, height * factor, width * factor, factor)
