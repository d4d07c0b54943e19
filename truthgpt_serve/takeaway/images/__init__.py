"""Conversions of image pipelines, by Diffusers."""
