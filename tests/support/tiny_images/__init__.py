"""Tiny pipelines of every supported class with random weights, made locally from fixed seeds.

Does not know the engine, the service or any network.
"""

from tests.support.tiny_images.adapters import create_lora, save_lora
from tests.support.tiny_images.pipelines import (
    CALL_DEFAULTS,
    KINDS,
    create_pipeline,
)
from tests.support.tiny_images.variants import VARIANTS, create_family, create_variant

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
