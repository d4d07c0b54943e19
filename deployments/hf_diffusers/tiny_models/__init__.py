"""A tiny Flux pipeline with random weights, made locally from a seed, for `truthgpt doctor`."""

from deployments.hf_diffusers.tiny_models.flux import create_flux

__all__ = ["create_flux"]
