"""Tiny pipelines of every supported class with random weights, made locally from fixed seeds.

Does not know the engine, the service or any network.
"""

from deployments.hf_diffusers.tiny_models.adapters import create_lora, save_lora
from deployments.hf_diffusers.tiny_models.pipelines import (
    CALL_DEFAULTS,
    KINDS,
    create_pipeline,
)
from deployments.hf_diffusers.tiny_models.variants import VARIANTS, create_family, create_variant

__all__ = [
    "CALL_DEFAULTS",
    "KINDS",
    "VARIANTS",
    "create_family",
    "create_lora",
    "create_pipeline",
    "create_variant",
    "save_lora",
]
