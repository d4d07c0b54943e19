"""Tries on this machine what the ONNX family offers, or what one configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deployments.onnx.config import OnnxSettings
from deployments.onnx.engine import INSTALL, PROVIDERS, choose_provider, probe_provider
from truthgpt_serve.contract import Probe


def examine(cfg: Mapping[str, Any] | None) -> Iterator[Probe]:
    """Yields a probe for each thing; see `FamilySpec.doctor_path`."""
    if cfg is None:
        yield from map(_provider, PROVIDERS)
    else:
        yield Probe.attempt(
            "execution provider", lambda: f"a session ran on {choose_provider(cfg)}"
        )


def _provider(name: str) -> Probe:
    problem = probe_provider(name, OnnxSettings())
    if problem is None:
        return Probe(f"execution provider {name}", True, "a small graph ran on it")
    return Probe(f"execution provider {name}", False, problem, INSTALL[name])
