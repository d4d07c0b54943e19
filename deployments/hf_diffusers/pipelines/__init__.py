"""Loads stock Diffusers pipelines and prepares them: weights, kernels, adapters, schedulers."""
