"""Registers the benchmark's classes with this product, as `model.import` does for a user's own."""

from __future__ import annotations

from benchmarks.batching_classes import CLASSES
from truthgpt_serve import register_model

for _name, _cls in CLASSES.items():
    register_model(f"bench-{_name}")(_cls)
