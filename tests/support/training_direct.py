"""Training as the example scripts of Diffusers do it, on the random numbers of a run.

Knows of the product only the order of rows and the draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.training_utils import compute_snr
from PIL import Image

from truthgpt_serve.training.images.data.draws import draw_for_training
from truthgpt_serve.training.images.data.sampling_order import Order

BATCH = 4


def read_pixels(file: Path, edge: int) -> Any:
    """Returns the center square of an image that is as high as the square, in [0, 1]."""
    image = Image.open(file).convert("RGB")
    left = (image.width - edge) // 2
    image = image.crop((left, 0, left + edge, edge))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


class Direct:
    """One training run of a pipeline.

    Args:
        folder: Of the pipeline.
        cfg: Of the run that it is compared with.
        images: Folder of the images, with `metadata.jsonl`.
    """

    def __init__(self, folder: Path, cfg: dict[str, Any], images: Path) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(folder)
        for part in self.pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False)
        self._cfg = cfg
        self._images = images
        lines = (images / "metadata.jsonl").read_text().splitlines()
        self._rows = [json.loads(line) for line in lines]
        scheduler = self.pipeline.scheduler
        self.is_flow = "Flow" in type(scheduler).__name__
        self.schedule = None if self.is_flow else DDPMScheduler.from_config(scheduler.config)

    def run(self, weights: Iterable[Any], loss_of: Callable[[int], Any]) -> list[float]:
        """Trains with AdamW; returns the losses.

        Args:
            weights: What is trained.
            loss_of: Returns the loss of a step.
        """
        training, trained = self._cfg["training"], list(weights)
        for weight in trained:
            weight.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=training["learning_rate"], weight_decay=0.0)
        losses = []
        for step in range(training["max_steps"]):
            loss = loss_of(step)
            loss.backward()
            if training["max_grad_norm"] > 0:
                torch.nn.utils.clip_grad_norm_(trained, training["max_grad_norm"])
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    def rows(self, step: int, count: int | None = None) -> list[int]:
        """Returns the rows of a step's batch, of the data or of so many images of the class."""
        order = Order(count or len(self._rows), self._cfg["seed"], BATCH, 1, 1)
        return [order.row(step * BATCH + offset) for offset in range(BATCH)]

    def captions(self, step: int) -> list[str]:
        """Returns the captions of a step's batch."""
        return [self._rows[row]["text"] for row in self.rows(step)]

    def pixels(self, step: int, field: str = "file_name") -> Any:
        """Returns the images of a step's batch."""
        edge = self._cfg["data"]["resolution"]
        files = [self._images / self._rows[row][field] for row in self.rows(step)]
        return torch.stack([read_pixels(file, edge) for file in files])

    def noised(self, step: int, pixels: Any, *, prior: bool = False) -> tuple[Any, Any, Any]:
        """Returns noisy latents, timesteps and what is to be predicted."""
        vae, config = self.pipeline.vae, self.pipeline.vae.config
        edge = pixels.shape[-1] // 2 ** (len(config.block_out_channels) - 1)
        shape = (config.latent_channels, edge, edge)
        draws = [
            draw_for_training(self._cfg["seed"], step * BATCH + offset, shape, prior=prior)
            for offset in range(BATCH)
        ]
        noise, posterior = (
            torch.stack([torch.from_numpy(getattr(one, name)) for one in draws])
            for name in ("noise", "posterior")
        )
        levels = torch.tensor([one.level for one in draws])
        with torch.no_grad():
            found = vae.encode(pixels * 2 - 1).latent_dist
        latents = found.mean + found.std * posterior
        if self.is_flow:
            latents = (latents - config.shift_factor) * config.scaling_factor
            sigmas = self._sigmas(levels, edge).view(-1, 1, 1, 1)
            return (1 - sigmas) * latents + sigmas * noise, sigmas.flatten() * 1000, noise - latents
        latents = latents * config.scaling_factor
        schedule = self.schedule
        assert schedule is not None
        steps = (levels * schedule.config.num_train_timesteps).long()
        target = noise
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(latents, noise, steps)
        return schedule.add_noise(latents, noise, steps), steps, target

    def _sigmas(self, levels: Any, edge: int) -> Any:
        """Logit-normal, shifted as the scheduler shifts what it samples by."""
        scheduler = self.pipeline.scheduler
        drawn = torch.distributions.Normal(0.0, 1.0).icdf(levels).sigmoid()
        if not scheduler.config.use_dynamic_shifting:
            shift = scheduler.config.shift
            return shift * drawn / (1 + (shift - 1) * drawn)
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        mu = config.base_shift + slope * ((edge // 2) ** 2 - config.base_image_seq_len)
        return math.exp(mu) / (math.exp(mu) + (1 / drawn - 1))

    def predict(self, noisy: Any, steps: Any, captions: list[str], **more: Any) -> Any:
        """Returns the denoiser's output, called as the script of the pipeline calls it."""
        pipeline, name = self.pipeline, type(self.pipeline).__name__
        if name == "StableDiffusionPipeline":
            return pipeline.unet(noisy, steps, self.embeds(captions), **more).sample
        if name == "StableDiffusion3Pipeline":
            embeds, _, pooled, _ = pipeline.encode_prompt(
                captions, None, None, do_classifier_free_guidance=False
            )
            return pipeline.transformer(
                noisy, embeds, pooled_projections=pooled, timestep=steps, return_dict=False
            )[0]
        embeds, pooled, text_ids = pipeline.encode_prompt(captions, None)
        count, channels, height, width = noisy.shape
        ids = pipeline._prepare_latent_image_ids(
            count, height // 2, width // 2, "cpu", torch.float32
        )
        packed = pipeline._pack_latents(noisy, count, channels, height, width)
        guides = pipeline.transformer.config.guidance_embeds
        output = pipeline.transformer(
            hidden_states=packed,
            timestep=steps / 1000,
            guidance=torch.ones(count) if guides else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        factor = pipeline.vae_scale_factor
        return pipeline._unpack_latents(output, height * factor, width * factor, factor)

    def embeds(self, captions: list[str]) -> Any:
        """Returns what the UNet is told of captions."""
        tokens = self.pipeline.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        )
        return self.pipeline.text_encoder(tokens.input_ids)[0]

    def score(self, output: Any, target: Any, steps: Any) -> Any:
        """Returns the loss, with the min-SNR weights of the scripts if the run has them."""
        gamma = self._cfg["training"]["min_snr_gamma"]
        if gamma is None:
            return functional.mse_loss(output, target)
        snr = compute_snr(self.schedule, steps)
        weights = torch.stack([snr, gamma * torch.ones_like(steps)], dim=1).min(dim=1)[0]
        assert self.schedule is not None
        divisor = snr + 1 if self.schedule.config.prediction_type == "v_prediction" else snr
        losses = functional.mse_loss(output, target, reduction="none").mean(dim=[1, 2, 3])
        return (losses * weights / divisor).mean()
