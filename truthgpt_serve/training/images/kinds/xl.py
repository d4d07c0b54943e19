"""The inputs of the denoiser of Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

import torch

from truthgpt_serve.training.images.kinds.base import Conditions, Kind


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

    def unet_arguments(self, conditions: Conditions, time_ids: Any) -> dict[str, Any]:
        """Adds the pooled embeddings, the size of each image and where it was cut."""
        embeds = conditions["encoder_hidden_states"]
        added = {"text_embeds": conditions["text_embeds"], "time_ids": time_ids.to(embeds.dtype)}
        return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}
