"""The family `hf-diffusers`: image pipelines, batched at every denoising step."""
